"""Records of what a user asks of each verb (jobs), and of what it returns (reports).

It may import the ground floor, and so needs no torch: `clip embed --help` takes 0.1 s.
"""

from .classify import Classified, ClassifyJob, ClassifyReport
from .cluster import RayOptions
from .demo import DemoJob
from .duplicates import Duplicate, DuplicateGroup, DuplicatesJob, DuplicatesReport
from .embed import EmbedJob, EmbedReport, Listing, Progress
from .export import ExportJob, ExportReport
from .health import CheckRow, ExtraRow, Health
from .index import IndexJob, IndexReport, Recall
from .merge import MergeJob, MergeReport
from .models import DeviceRow, Fetched, FetchJob, ModelRow
from .options import Columns, DecodeOptions, Limits, ModelOptions, OutputPolicy
from .search import Hit, SearchJob, SearchReport, Weighted
from .serve import ServeJob, Traffic
from .stats import Cosines, StatsJob, StatsReport
from .tune import SettingRow, TuneJob, TuneReport
from .verify import Problem, VerifyJob, VerifyReport

__all__ = [
    "CheckRow", "Classified", "ClassifyJob", "ClassifyReport", "Columns", "Cosines", "DecodeOptions", "DemoJob",
    "DeviceRow", "Duplicate", "DuplicateGroup", "DuplicatesJob", "DuplicatesReport", "EmbedJob", "EmbedReport",
    "ExportJob", "ExportReport", "ExtraRow", "FetchJob", "Fetched", "Health", "Hit", "IndexJob", "IndexReport",
    "Limits", "Listing", "MergeJob", "MergeReport", "ModelOptions", "ModelRow", "OutputPolicy", "Problem", "Progress",
    "RayOptions", "Recall", "SearchJob", "SearchReport", "ServeJob", "SettingRow", "StatsJob", "StatsReport", "Traffic",
    "TuneJob", "TuneReport", "VerifyJob", "VerifyReport", "Weighted",
]  # fmt: skip
