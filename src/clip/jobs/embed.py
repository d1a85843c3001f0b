"""What a user can ask of `clip embed`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..errors import InputError
from ..records import STDIN, Columns, Kind, as_utf8
from .options import (
    DECODE_SECONDS,
    MAX_SECONDS,
    Background,
    DecodeOptions,
    DuplicateIds,
    Frames,
    Limits,
    LongText,
    OnFailure,
    Orient,
    PixelMode,
    Precision,
    SixteenBit,
    VectorDtype,
    check_cosine,
    check_counts,
    named_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Columns of OUT that no kept one may have the name of.
OWN_COLUMNS = (
    *("id", "path", "embedding", "text_embedding", "width", "height", "format", "size_bytes", "sha256", "text"),
    *("embedding.list.element", "text_embedding.list.element"),  # how Parquet calls the numbers of vectors
)
IMAGES_ONLY = (
    *("batch_size", "root", "max_bytes", "max_pixels", "max_aspect", "decode", "orient", "background", "sixteen_bit"),
    *("frames", "max_frames", "isolate", "max_seconds", "hashes", "text_column", "decode_budget_bytes", "min_cosine"),
    "calibration",
)
MAX_READERS = 100  # which is as many connections as aiohttp has


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """All that decides which vectors a run of `clip.embed` writes, and how."""

    source: str | Path | Sequence[str | Path]  # folders, patterns, lists, archives, tables: sources.py; one or several
    output: str | Path
    model: str = "ViT-B/32"  # a released name, or the path of a weights file
    untrained: int | None = None  # draw the weights at random from this seed
    device: str = "auto"
    precision: Precision = "reference"  # what vectors are computed in; what OpenAI's code has on the device without
    min_cosine: float | None = None  # measure first, and take the fastest precision and decode that stay within this
    calibration: str | Path | None = None  # images for int8 to quantise by; the first ones of the input without
    batch_size: int | None = None  # images the model reads at a time; as suits model and device without
    workers: int | None = None  # threads that decode; one a core without
    readers: int = 32  # images that are asked of servers at a time
    threads: int | None = None  # threads of the model on a CPU; one a core without
    normalize: bool = True  # vectors of unit length
    dtype: VectorDtype = "float32"
    globs: tuple[str, ...] = ()  # the paths to take, instead of those with an image's extension
    column: str | None = None  # of lists and tables: what names or holds the images; the one with a usual name without
    id_column: str | None = None  # likewise, for ids
    texts: bool = False  # the input holds texts, instead of images
    text_column: str | None = None  # embed the texts of this column too, as a second vector in the rows
    long_text: LongText = "fail"  # a text of more tokens than the model reads is a failure row, or its tail is dropped
    keep: tuple[str, ...] = ()  # columns of lists and tables that go along into the rows
    root: str = ""  # that relative paths in lists start from; the current folder without
    duplicate_ids: DuplicateIds = "error"  # refuse an input in which an id stands twice, or keep both rows
    limit: int | None = None  # the first so many images
    shard_size: int = 10_000  # images per Parquet part
    decode_budget_bytes: int = 400_000_000  # decoded images that threads may hold at a time
    max_bytes: int = Limits.max_bytes  # of an image's file; more is a failure row, as are the next two
    max_pixels: int = Limits.max_pixels  # width times height, before decoding
    max_aspect: float | None = Limits.max_aspect  # the longer side over the shorter
    decode: PixelMode = "exact"  # the pixels of OpenAI's code bit for bit, or nearly those
    orient: Orient = "none"  # pixels as stored, as OpenAI's code has them, or turned as EXIF says
    background: Background = "none"  # drop the alpha of transparent images, or lay them on a colour
    sixteen_bit: SixteenBit = "clip"  # 255 and more of a 16-bit grey image is white, or 65535 is
    frames: Frames = "first"  # of animations and files of several pages
    max_frames: int = Limits.max_frames  # of a file, with frames="all"
    isolate: bool = False  # decode in processes of their own, so that an image that kills its decoder is a failure row
    max_seconds: float | None = None  # for one image to decode, with isolate; a minute without
    hashes: bool = False  # store the sha256 of each image's file, and update by it
    on_failure: OnFailure = "record"  # go on with a failure row, or stop at the first
    max_failures: str | None = None  # a number, or a part of the input as "5%", after which the run stops; all without
    overwrite: bool = False  # remove an earlier run's files from the output, instead of going on with it
    update: bool = False  # bring an output whose input changed up to date: do what is new or changed, drop what is gone

    def __post_init__(self) -> None:
        caps = ("max_bytes", "max_pixels", "max_aspect", "max_frames")
        if self.max_seconds is not None and not (self.isolate and 0 < self.max_seconds <= MAX_SECONDS):
            raise InputError(
                f"max_seconds: found {self.max_seconds} {'with' if self.isolate else 'without'} isolate, expected more "
                f"than 0 and at most {MAX_SECONDS:,} with it, as only a process can be stopped. Pass both."
            )
        if self.update and (self.overwrite or self.duplicate_ids == "keep"):
            other = "overwrite" if self.overwrite else "duplicate_ids='keep'"
            raise InputError(
                "`update`",
                f"found {other} too",
                "one of them",
                "Pass one.",
            )
        self._check_columns()
        self._check_speed()
        counts = ("batch_size", "workers", "readers", "threads", "limit", "shard_size", "decode_budget_bytes")
        check_counts(self, (*counts, *caps))
        if self.readers > MAX_READERS:
            raise InputError(
                "`readers`",
                f"found {self.readers}",
                f"at most {MAX_READERS}",
                "Pass fewer.",
            )
        if self.untrained is not None and not 0 <= self.untrained < 2**63:
            raise InputError(
                "`untrained`",
                f"found {self.untrained}",
                "a seed from 0 to 2**63 - 1",
                "Pass another.",
            )
        if self.max_failures is not None and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failures):
            raise InputError(
                "`max_failures`",
                f"found {self.max_failures!r}",
                "a number, or a percentage as in 5%",
                "Pass one.",
            )
        words_of = {"dtype": VectorDtype, "precision": Precision, "on_failure": OnFailure, "decode": PixelMode}
        words_of |= {"duplicate_ids": DuplicateIds, "orient": Orient, "background": Background}
        words_of |= {"sixteen_bit": SixteenBit, "frames": Frames, "long_text": LongText}
        for name, words in ((name, get_args(kind)) for name, kind in words_of.items()):
            if getattr(self, name) not in words:
                raise InputError(
                    name,
                    f"found {getattr(self, name)!r}",
                    f"one of {words}",
                    "Pass one.",
                )

    def _check_columns(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name in IMAGES_ONLY:
            if self.texts and getattr(self, name) != defaults[name]:
                raise InputError(
                    "texts",
                    f"found {name} too",
                    "it with images only",
                    "Leave one out.",
                )
        if isinstance(self.keep, str):
            raise InputError(
                "`keep`",
                f"found the text {self.keep!r}",
                "several",
                "Pass a tuple of them.",
            )
        for place, name in enumerate(self.keep):
            if as_utf8(name) != name:
                raise InputError(
                    "`keep`",
                    f"found {name!r}",
                    "UTF-8",
                    "Rename it in the table.",
                )
            # Without regard to case, as of columns in SQL.
            if name.lower() in (*OWN_COLUMNS, *map(str.lower, self.keep[:place])):
                raise InputError(
                    "`keep`",
                    f"found {name!r}, which OUT has already",
                    "columns of other names",
                    "Leave it out, or rename it in the table.",
                )

    def _check_speed(self) -> None:
        chooses = "min_cosine" if self.min_cosine is not None else "int8" if self.precision == "int8" else None
        if chooses and STDIN in self.inputs and not (chooses == "int8" and self.calibration):
            raise InputError(
                chooses,
                f"found '{STDIN}' as input",
                "one that can be read twice",
                "Write the list to a file.",
            )
        if self.precision == "int8" and self.texts:
            raise InputError(
                "`precision`",
                "found int8 for texts",
                "it for images",
                "Pass another one.",
            )
        if self.min_cosine is not None:
            check_cosine(self.min_cosine)
            if (self.precision, self.decode) != ("reference", "exact"):
                raise InputError(
                    "`min_cosine`",
                    f"found precision {self.precision} and decode {self.decode} too",
                    "neither, as it chooses them",
                    "Leave them out.",
                )
        elif self.calibration is not None and self.precision != "int8":
            raise InputError(
                "`calibration`",
                f"found it with precision {self.precision}",
                "int8",
                "Leave it out, or pass int8.",
            )

    @property
    def kind(self) -> Kind:
        """What an entry of the input is."""
        return "texts" if self.texts else "images" if self.text_column is None else "pairs"

    @property
    def isolated_s(self) -> float | None:
        """What an image may take in a process of its own; None without `isolate`."""
        return (self.max_seconds or DECODE_SECONDS) if self.isolate else None

    @property
    def columns(self) -> Columns:
        """Which columns of lists and tables are read."""
        return Columns(self.column, self.id_column, self.kind, self.text_column, self.keep)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What `source` names, as texts."""
        return named_inputs(self.source)

    @property
    def limits(self) -> Limits:
        """What an image may cost."""
        return Limits(self.max_bytes, self.max_pixels, self.max_aspect, self.max_frames)

    @property
    def policies(self) -> DecodeOptions:
        """How a file is read where there is a choice."""
        return DecodeOptions(self.orient, self.background, self.sixteen_bit, self.frames)

    def allowed_failures(self, total: int) -> int:
        """How many of so many entries may fail before the run stops."""
        if self.on_failure == "stop":
            return 0
        if self.max_failures is None:
            return total
        if self.max_failures.endswith("%"):
            return int(total * float(self.max_failures[:-1]) / 100)
        return int(self.max_failures)


@dataclass(frozen=True)
class Listing:
    """What an input was found to be."""

    images: int = 0
    archives: int = 0  # beside them, that do not tell how many they hold
    example: str = ""  # the first of all, once all is listed
    ignored: dict[str, int] = field(default_factory=dict[str, int])  # likewise, by reason


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    read: int
    total: int | None  # as counted before the run; None where an archive does not tell; 0 while listing is under way
    failed: int
    resumed: int = 0  # of those read, by an earlier run
    listing: Listing | None = None  # how far that is, while it is under way
    shard: int = 0  # shards that are done
    shards: int = 0
    told: str = ""  # what else a user wants to know; the numbers say nothing then


@dataclass(frozen=True)
class EmbedReport:
    """What came of a run."""

    output: Path
    read: int  # written + failed
    written: int
    failed: int
    ignored: dict[str, int]  # files and folders passed over, by reason; sources.py has the rules
    seconds: float  # start-up included
    resumed: int = 0  # of those read, by an earlier run
    removed: int = 0  # by an update: rows and failures of what is listed no more
