"""The command `clip serve`: answer HTTP requests until it is stopped."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingExtraError
from ..jobs.fields import nest
from ..jobs.serve import ServeJob
from .flags import GroupedCommand, job_option
from .progress import say

if TYPE_CHECKING:
    from collections.abc import Callable


def _option(field: str, *flags: str, **settings: Any) -> Callable[..., Any]:
    """Return a flag of the job that an environment variable sets too: --max-items is CLIP_MAX_ITEMS."""
    name = flags[-1].partition("/")[0].strip("-").replace("-", "_").upper()
    return job_option(ServeJob, field, *flags, envvar=f"CLIP_{name}", **settings)


_number, _seconds = partial(_option, metavar="N"), partial(_option, metavar="S")
EXAMPLES = ("clip serve -m ViT-B/32 --index out/",)


@click.command(cls=GroupedCommand, short_help="Answer HTTP requests for vectors.", examples=EXAMPLES)
@_option("models", "-m", "--model", metavar="MODEL", multiple=True)
@_option("index", "--index", metavar="OUT", multiple=True)
@_option("root", "--root", metavar="DIR")
@_option("model.untrained", "--untrained", metavar="SEED")
@_option("model.architecture", "--architecture", metavar="NAME|FILE")
@_option("model.device", "--device", metavar="DEVICE")
@_option("model.precision", "--precision")
@_number("model.batch_size", "--batch-size")
@_number("model.threads", "--threads")
@_option("host", "--host", metavar="ADDRESS")
@_number("port", "--port")
@_option("api_key", "--api-key", metavar="KEY")
@_option("hosts", "--allow-host", metavar="NAME", multiple=True)
@_option("cors_origins", "--cors-origin", metavar="ORIGIN", multiple=True)
@_option("allow_urls", "--allow-urls")
@_seconds("fetch_seconds", "--fetch-seconds")
@_option("decoders", "--decoders")
@_number("workers", "--workers")
@_seconds("max_seconds", "--max-seconds")
@_number("decode_budget_bytes", "--decode-budget-bytes")
@_option("decode.pixels", "--decode")
@_option("decode.orient", "--orient")
@_option("decode.background", "--background")
@_option("decode.sixteen_bit", "--sixteen-bit")
@_option("decode.raw_previews", "--raw-previews")
@_number("limits.max_pixels", "--max-pixels")
@_option("limits.max_aspect", "--max-aspect", metavar="X")
@_number("traffic.max_body_bytes", "--max-body-bytes")
@_number("traffic.held_bytes", "--held-bytes")
@_number("traffic.max_items", "--max-items")
@_number("traffic.queue", "--queue")
@_seconds("traffic.body_seconds", "--body-seconds")
@_seconds("traffic.header_seconds", "--header-seconds")
@_seconds("traffic.keep_alive_seconds", "--keep-alive-seconds")
@_number("traffic.max_connections", "--max-connections")
@_option("traffic.wait_ms", "--wait-ms", metavar="MS")
@_seconds("traffic.drain_seconds", "--drain-seconds")
@_option("access_log", "--access-log")
def serve(**options: Any) -> None:
    """Answer HTTP requests for the vectors of images and texts.

    POST /v1/embeddings is OpenAI's, and takes images too; /v2/embed is Cohere's, /predict Immich's. Many requests share
    a batch. Each flag has an environment variable: CLIP_MAX_ITEMS is --max-items. SIGTERM and Ctrl-C stop it when the
    requests under way are answered; exit code 0: it was stopped so; 1: it failed; 2: it did not begin.
    """
    job = ServeJob(**nest(ServeJob, options))
    try:
        from ..serve import server
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("clip"):
            raise
        found = f"needs {exc.name}, which is not installed"
        raise MissingExtraError("clip serve", found, remedy="Run: pip install 'clip-turbo[serve]'") from exc
    server.serve(job, say)
