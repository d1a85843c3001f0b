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


def _option(group: str, field: str, *flags: str, **settings: Any) -> Callable[..., Any]:
    """Return a flag under a heading, which an environment variable sets too: --max-items is CLIP_MAX_ITEMS."""
    name = flags[-1].partition("/")[0].strip("-").replace("-", "_").upper()
    return job_option(ServeJob, field, *flags, group=group, envvar=f"CLIP_{name}", **settings)


ANSWER, LISTEN = partial(_option, "What to answer with"), partial(_option, "Whom to answer")
DECODE, LIMIT = partial(_option, "How to decode"), partial(_option, "Limits")
EXAMPLES = ("clip serve -m ViT-B/32 --index out/",)


@click.command(cls=GroupedCommand, short_help="Answer HTTP requests for vectors.", examples=EXAMPLES)
@ANSWER("models", "-m", "--model", metavar="MODEL", multiple=True)
@ANSWER("index", "--index", metavar="OUT", multiple=True)
@ANSWER("root", "--root", metavar="DIR")
@ANSWER("model.untrained", "--untrained", metavar="SEED")
@ANSWER("model.architecture", "--architecture", metavar="NAME|FILE")
@ANSWER("model.device", "--device", metavar="DEVICE")
@ANSWER("model.precision", "--precision")
@ANSWER("model.batch_size", "--batch-size", metavar="N")
@ANSWER("model.threads", "--threads", metavar="N")
@LISTEN("host", "--host", metavar="ADDRESS")
@LISTEN("port", "--port", metavar="N")
@LISTEN("api_key", "--api-key", metavar="KEY")
@LISTEN("hosts", "--allow-host", metavar="NAME", multiple=True)
@LISTEN("cors_origins", "--cors-origin", metavar="ORIGIN", multiple=True)
@LISTEN("allow_urls", "--allow-urls")
@LISTEN("fetch_seconds", "--fetch-seconds", metavar="S")
@LISTEN("access_log", "--access-log")
@DECODE("decoders", "--decoders")
@DECODE("workers", "--workers", metavar="N")
@DECODE("max_seconds", "--max-seconds", metavar="S")
@DECODE("decode_budget_bytes", "--decode-budget-bytes", metavar="N")
@DECODE("decode.pixels", "--decode")
@DECODE("decode.orient", "--orient")
@DECODE("decode.background", "--background")
@DECODE("decode.sixteen_bit", "--sixteen-bit")
@DECODE("decode.raw_previews", "--raw-previews")
@DECODE("limits.max_pixels", "--max-pixels", metavar="N")
@DECODE("limits.max_aspect", "--max-aspect", metavar="X")
@LIMIT("traffic.max_body_bytes", "--max-body-bytes", metavar="N")
@LIMIT("traffic.held_bytes", "--held-bytes", metavar="N")
@LIMIT("traffic.max_items", "--max-items", metavar="N")
@LIMIT("traffic.queue", "--queue", metavar="N")
@LIMIT("traffic.body_seconds", "--body-seconds", metavar="S")
@LIMIT("traffic.header_seconds", "--header-seconds", metavar="S")
@LIMIT("traffic.keep_alive_seconds", "--keep-alive-seconds", metavar="S")
@LIMIT("traffic.max_connections", "--max-connections", metavar="N")
@LIMIT("traffic.wait_ms", "--wait-ms", metavar="MS")
@LIMIT("traffic.drain_seconds", "--drain-seconds", metavar="S")
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
