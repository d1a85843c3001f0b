"""OpenAI's CLIP, the same calls and the same vectors, ready for real work.

Names are resolved on first use (PEP 562): `import clip` loads neither torch nor anything else that is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import clip, errors, jobs, model, simple_tokenizer
    from .batch.embed import embed
    from .batch.tune import tune
    from .batch.verify import verify
    from .clip import available_models, load, tokenize
    from .encoder import Encoder
    from .jobs import (
        Classified,
        ClassifyJob,
        ClassifyReport,
        EmbedJob,
        EmbedReport,
        ExportJob,
        ExportReport,
        Hit,
        IndexJob,
        IndexReport,
        SearchJob,
        SearchReport,
        TuneJob,
        TuneReport,
        VerifyJob,
        VerifyReport,
    )
    from .retrieval.classify import classify
    from .retrieval.search import Index, index, search
    from .store.export import export
    from .store.reader import Store

__version__ = "0.1.0"

_HOMES = {
    "batch.embed": ("embed",),
    "batch.tune": ("tune",),
    "batch.verify": ("verify",),
    "clip": ("available_models", "load", "tokenize"),
    "encoder": ("Encoder",),
    "jobs": (
        *("Classified", "ClassifyJob", "ClassifyReport", "EmbedJob", "EmbedReport", "ExportJob", "ExportReport", "Hit"),
        *("IndexJob", "IndexReport", "SearchJob", "SearchReport", "TuneJob", "TuneReport", "VerifyJob", "VerifyReport"),
    ),
    "retrieval.classify": ("classify",),
    "retrieval.search": ("Index", "index", "search"),
    "store.export": ("export",),
    "store.reader": ("Store",),
}
_MODULES = ("clip", "errors", "jobs", "model", "simple_tokenizer")
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Classified", "ClassifyJob", "ClassifyReport", "EmbedJob", "EmbedReport", "Encoder", "ExportJob",
    "ExportReport", "Hit", "Index", "IndexJob", "IndexReport", "SearchJob", "SearchReport", "Store", "TuneJob",
    "TuneReport", "VerifyJob", "VerifyReport", "available_models", "classify", "clip", "embed", "errors", "export",
    "index", "jobs", "load", "model", "search", "simple_tokenizer", "tokenize", "tune", "verify",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOME_OF:
        value = globals()[name] = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
