"""OpenAI's CLIP, the same calls and the same vectors, ready for real work.

Names are resolved on first use (PEP 562): `import clip` loads neither torch nor anything else that is installed.
`from clip import *` brings OpenAI's six names and four of ours: programs written for OpenAI's have it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # "as" tells type checkers that a name is public
    from . import clip as clip
    from . import errors as errors
    from . import jobs as jobs
    from . import model as model
    from . import simple_tokenizer as simple_tokenizer
    from .batch.embed import embed as embed
    from .batch.tune import tune as tune
    from .batch.verify import verify as verify
    from .clip import available_models as available_models
    from .clip import load as load
    from .clip import tokenize as tokenize
    from .encoder import Encoder as Encoder
    from .jobs import Classified as Classified
    from .jobs import ClassifyJob as ClassifyJob
    from .jobs import ClassifyReport as ClassifyReport
    from .jobs import EmbedJob as EmbedJob
    from .jobs import EmbedReport as EmbedReport
    from .jobs import ExportJob as ExportJob
    from .jobs import ExportReport as ExportReport
    from .jobs import Hit as Hit
    from .jobs import IndexJob as IndexJob
    from .jobs import IndexReport as IndexReport
    from .jobs import SearchJob as SearchJob
    from .jobs import SearchReport as SearchReport
    from .jobs import TuneJob as TuneJob
    from .jobs import TuneReport as TuneReport
    from .jobs import VerifyJob as VerifyJob
    from .jobs import VerifyReport as VerifyReport
    from .records import Failure as Failure
    from .retrieval.classify import classify as classify
    from .retrieval.search import Index as Index
    from .retrieval.search import index as index
    from .retrieval.search import search as search
    from .store.export import export as export
    from .store.reader import Store as Store

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "Index",
    "available_models",
    "clip",
    "embed",
    "load",
    "model",
    "search",
    "simple_tokenizer",
    "tokenize",
]

_MODULES = ("clip", "errors", "jobs", "model", "simple_tokenizer")
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
    "records": ("Failure",),
    "retrieval.classify": ("classify",),
    "retrieval.search": ("Index", "index", "search"),
    "store.export": ("export",),
    "store.reader": ("Store",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOME_OF:
        value = globals()[name] = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_HOME_OF})
