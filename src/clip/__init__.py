"""OpenAI's CLIP, the same calls and the same vectors, ready for real work.

Names are resolved on first use (PEP 562): `import clip` loads neither torch nor anything else that is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip import clip, errors, model, simple_tokenizer
    from clip.clip import available_models, load, tokenize
    from clip.encoder import Encoder
    from clip.find_jobs import (
        Classified,
        ClassifyJob,
        ClassifyReport,
        Hit,
        IndexJob,
        IndexReport,
        SearchJob,
        SearchReport,
    )
    from clip.jobs import EmbedJob, EmbedReport, ExportJob, ExportReport, VerifyJob, VerifyReport
    from clip.pipeline import embed
    from clip.search import Index
    from clip.stored import Store
    from clip.tune_jobs import TuneJob, TuneReport
    from clip.zero_shot import classify

__version__ = "0.1.0"

__all__ = [
    "Classified",
    "ClassifyJob",
    "ClassifyReport",
    "EmbedJob",
    "EmbedReport",
    "Encoder",
    "ExportJob",
    "ExportReport",
    "Hit",
    "Index",
    "IndexJob",
    "IndexReport",
    "SearchJob",
    "SearchReport",
    "Store",
    "TuneJob",
    "TuneReport",
    "VerifyJob",
    "VerifyReport",
    "available_models",
    "classify",
    "clip",
    "embed",
    "errors",
    "load",
    "model",
    "simple_tokenizer",
    "tokenize",
]

_HOME = {
    "available_models": "clip.clip",
    "load": "clip.clip",
    "tokenize": "clip.clip",
    "Encoder": "clip.encoder",
    "Classified": "clip.find_jobs",
    "ClassifyJob": "clip.find_jobs",
    "ClassifyReport": "clip.find_jobs",
    "Hit": "clip.find_jobs",
    "IndexJob": "clip.find_jobs",
    "IndexReport": "clip.find_jobs",
    "SearchJob": "clip.find_jobs",
    "SearchReport": "clip.find_jobs",
    "EmbedJob": "clip.jobs",
    "EmbedReport": "clip.jobs",
    "ExportJob": "clip.jobs",
    "ExportReport": "clip.jobs",
    "VerifyJob": "clip.jobs",
    "VerifyReport": "clip.jobs",
    "Index": "clip.search",
    "Store": "clip.stored",
    "TuneJob": "clip.tune_jobs",
    "TuneReport": "clip.tune_jobs",
    "classify": "clip.zero_shot",
    "embed": "clip.pipeline",
}
_MODULES = ("clip", "errors", "model", "simple_tokenizer")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"clip.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'clip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
