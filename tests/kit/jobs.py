"""Jobs from flat options, as flags give them: `max_bytes=3` instead of `limits=Limits(max_bytes=3)`."""

from dataclasses import fields
from typing import Any, cast

from clip.jobs import EmbedJob, TuneJob
from clip.jobs.fields import nest

RENAMED = {"model": "name", "decode": "pixels", "column": "entry", "id_column": "id", "text_column": "text"}
RECORDS = ("model", "decode", "limits", "columns", "policy")


def flatten(job: type, options: dict[str, Any]) -> dict[str, Any]:
    """The same options under the names that `nest` takes."""
    homes = {
        field.name: f"{record}__{field.name}"
        for record in RECORDS
        if hasattr(job, record)
        for field in fields(getattr(job, record))
    }
    own = {field.name for field in fields(job)} - set(RECORDS)
    return {name if name in own else homes.get(RENAMED.get(name, name), name): value for name, value in options.items()}


def embed_job(**options: Any) -> EmbedJob:
    return EmbedJob(**nest(EmbedJob, flatten(EmbedJob, options)))


def tune_job(**options: Any) -> TuneJob:
    return TuneJob(**nest(TuneJob, flatten(TuneJob, options)))


def change_job(job: EmbedJob, **options: Any) -> EmbedJob:
    """A job with some options changed."""
    flat = {name: value for name, value in vars(job).items() if name not in RECORDS}
    for record in RECORDS:
        held = cast("Any", job.model_options if record == "model" else getattr(job, record))
        flat |= {f"{record}__{field.name}": getattr(held, field.name) for field in fields(held)}
    return EmbedJob(**nest(EmbedJob, {**flat, **flatten(EmbedJob, options)}))
