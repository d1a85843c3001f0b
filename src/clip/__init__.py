"""OpenAI's CLIP, the same calls and the same vectors, ready for real work.

Names are resolved on first use: `import clip` loads neither torch nor anything else that is installed. `from clip
import *` brings the six names that OpenAI's brings, so that it hides no name of a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_names import resolve_lazily

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
    from .cluster.embed import embed_on_ray as embed_on_ray
    from .encoder import Encoder as Encoder
    from .jobs import Classified as Classified
    from .jobs import ClassifyJob as ClassifyJob
    from .jobs import ClassifyReport as ClassifyReport
    from .jobs import Duplicate as Duplicate
    from .jobs import DuplicateGroup as DuplicateGroup
    from .jobs import DuplicatesJob as DuplicatesJob
    from .jobs import DuplicatesReport as DuplicatesReport
    from .jobs import EmbedJob as EmbedJob
    from .jobs import EmbedReport as EmbedReport
    from .jobs import ExportJob as ExportJob
    from .jobs import ExportReport as ExportReport
    from .jobs import Hit as Hit
    from .jobs import IndexJob as IndexJob
    from .jobs import IndexReport as IndexReport
    from .jobs import MergeJob as MergeJob
    from .jobs import MergeReport as MergeReport
    from .jobs import Recall as Recall
    from .jobs import SearchJob as SearchJob
    from .jobs import SearchReport as SearchReport
    from .jobs import StatsJob as StatsJob
    from .jobs import StatsReport as StatsReport
    from .jobs import TuneJob as TuneJob
    from .jobs import TuneReport as TuneReport
    from .jobs import VerifyJob as VerifyJob
    from .jobs import VerifyReport as VerifyReport
    from .jobs import Weighted as Weighted
    from .records import Failure as Failure
    from .retrieval.classify import classify as classify
    from .retrieval.duplicates import find_duplicates as find_duplicates
    from .retrieval.indexing import index as index
    from .retrieval.search import Index as Index
    from .retrieval.search import search as search
    from .retrieval.stats import stats as stats
    from .store.export import export as export
    from .store.merge import merge as merge
    from .store.reader import Store as Store

__version__ = "0.1.0"

__all__ = ["available_models", "clip", "load", "model", "simple_tokenizer", "tokenize"]

_HOMES = {
    "batch.embed": ("embed",),
    "batch.tune": ("tune",),
    "batch.verify": ("verify",),
    "clip": ("available_models", "load", "tokenize"),
    "cluster.embed": ("embed_on_ray",),
    "encoder": ("Encoder",),
    "jobs": (
        *("Classified", "ClassifyJob", "ClassifyReport"),
        *("Duplicate", "DuplicateGroup", "DuplicatesJob", "DuplicatesReport"),
        *("EmbedJob", "EmbedReport", "ExportJob", "ExportReport", "Hit"),
        *("IndexJob", "IndexReport", "MergeJob", "MergeReport", "Recall", "SearchJob"),
        *("SearchReport", "StatsJob", "StatsReport", "TuneJob", "TuneReport", "VerifyJob", "VerifyReport", "Weighted"),
    ),
    "records": ("Failure",),
    "retrieval.classify": ("classify",),
    "retrieval.duplicates": ("find_duplicates",),
    "retrieval.indexing": ("index",),
    "retrieval.search": ("Index", "search"),
    "retrieval.stats": ("stats",),
    "store.export": ("export",),
    "store.merge": ("merge",),
    "store.reader": ("Store",),
}

_PUBLIC = {name: f".{name}" for name in ("clip", "errors", "jobs", "model", "simple_tokenizer")} | {
    name: f".{module}:{name}" for module, names in _HOMES.items() for name in names
}
__getattr__, __dir__ = resolve_lazily(globals(), _PUBLIC)
