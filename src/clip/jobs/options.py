"""Options that several jobs share, and the checks they have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InputError
from ..object_paths import ObjectPath, is_object_url
from ..own_files import explain_place
from ..records import TEXT, Kind
from .fields import documented, field_types

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


# Columns of an output; upper and lower case are the same, as in SQL.
OWN_COLUMNS = (
    *("id", "path", "embedding", "text_embedding", "width", "height", "format", "size_bytes", "sha256", "warning"),
    *("text", "embedding.list.element", "text_embedding.list.element"),  # how Parquet names the numbers of vectors
)
PixelMode = Literal["exact", "fast", "immich"]
Orient = Literal["none", "exif"]
Background = Literal["none", "white", "black"]
SixteenBit = Literal["clip", "scale"]
Frames = Literal["first", "all"]
LongText = Literal["fail", "cut"]
Precision = Literal["reference", "fp32", "fp16", "bf16", "int8", "fp8"]
CALIBRATED_PRECISIONS: frozenset[Precision] = frozenset({"int8"})  # those that are quantised by some of the images
VectorDtype = Literal["float32", "float16"]
OnFailure = Literal["record", "stop"]
Decoders = Literal["auto", "threads", "processes"]
Resize = Literal["auto", "decoders", "device"]
Quoting = Literal["auto", "standard", "none"]
DuplicateIds = Literal["error", "keep"]
ExportFormat = Literal["npy", "clip-retrieval", "csv", "safetensors", "pgvector"]
MAX_SAVE_SECONDS = 86_400  # a day
MAX_SEED = 2**63 - 1  # the largest that torch takes
FAST_COSINE = 0.999  # the bound of `clip embed --fast`
MAX_THREADS = 1024  # of one kind; torch ends the process when it cannot start all it is asked for


@documented
@dataclass(frozen=True)
class ModelOptions:
    """Which model computes the vectors, and how it runs."""

    name: str = "ViT-B/32"
    """A released name, "sketch", or the path of a weights file."""
    untrained: int | None = None
    """Draw the weights at random from this seed, instead of reading any."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes CUDA where there is one, else the CPU."""
    precision: Precision = "reference"
    """Number type to compute in; reference is the one of OpenAI's code on the device: fp32 on a CPU, fp16 on CUDA."""
    batch_size: int | None = None
    """Images the model reads at a time; default: chosen by model and device."""
    threads: int | None = None
    """Threads of the model on a CPU; default: one per core."""
    architecture: str | None = None
    """Network of weights that do not show theirs: ViT-H-14 of open_clip, ViT-B/32, or a configuration's path."""

    def __post_init__(self) -> None:
        check_counts(self, ("batch_size", "threads"))
        check_words(self)
        if self.untrained is not None and not 0 <= self.untrained <= MAX_SEED:
            raise InputError("`untrained`", f"found {self.untrained}", "a seed from 0 to 2**63 - 1", "Pass another.")
        if self.architecture is not None and self.untrained is not None:
            raise InputError("`architecture`", "found untrained too", "one of them", "Leave out `untrained`.")

    @classmethod
    def of(cls, model: str | ModelOptions) -> ModelOptions:
        """Return the options of a model that may be given by its name alone."""
        return cls(model) if isinstance(model, str) else model


@documented
@dataclass(frozen=True)
class Limits:
    """What an image may cost; one beyond a limit becomes a failure row before it is decoded."""

    max_bytes: int = 2**31 - 1  # no format that is decoded gains from more
    """Largest file in bytes; a larger one becomes a failure row."""
    max_pixels: int = 100_000_000
    """Largest image in pixels, width times height, whatever Pillow's own limit is."""
    max_aspect: float | None = None
    """Largest ratio of the longer side to the shorter; default: any, if the resized canvas has up to 256 megapixels."""
    max_frames: int = 1000
    """Frames to take of a file, where all are wanted; the rest becomes one failure row."""

    def __post_init__(self) -> None:
        check_counts(self, ("max_bytes", "max_pixels", "max_aspect", "max_frames"))


@documented
@dataclass(frozen=True)
class DecodeOptions:
    """How a file becomes pixels where there is a choice. Each default is what OpenAI's code does."""

    pixels: PixelMode = "exact"
    """exact: the pixels of OpenAI's code, bit for bit; fast: nearly those, several times faster for large JPEGs;
    immich: those of Immich's own server, to keep an index of its."""
    orient: Orient = "none"
    """none: pixels as stored; exif: turned as the file's EXIF data says."""
    background: Background = "none"
    """Colour to lay transparent images on; none drops their alpha."""
    sixteen_bit: SixteenBit = "clip"
    """What is white in grey images of 16 bits and more: values of 255 and above (clip), or 65535 (scale)."""
    frames: Frames = "first"
    """Frames to embed of animations and files of several pages: the first, or all, each as a row."""
    raw_previews: bool = False
    """Embed RAW photos too, by the largest JPEG inside each; the row's warning says so."""

    def __post_init__(self) -> None:
        check_words(self)


@documented
@dataclass(frozen=True)
class Columns:
    """Which columns of lists and tables the entries are made of."""

    entry: str | None = None
    """Column that names or holds the images, or has the texts; default: the one with a usual name."""
    id: str | None = None
    """Column that has the ids; default: the paths, or the places in the table."""
    texts: bool = False
    """Embed texts instead of images: lists and tables of captions, one per line."""
    text: str | None = None
    """Column of texts that belong to the images, embedded as a second vector of each row."""
    keep: tuple[str, ...] = ()
    """Columns to copy into the rows."""
    types: tuple[str, ...] = ()
    """Types of the copied columns in the output, as pyarrow names them; default: text."""
    delimiter: str = ""
    """Character between the fields of CSV and TSV lists, or the word tab; default: by the ending and the first line."""
    quoting: Quoting = "auto"
    """Quotes in CSV and TSV: as in RFC 4180, refused where they may swallow rows (auto) or not (standard); or none."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.delimiter and (len(self.delimiter_character) != 1 or self.delimiter in '"\r\n\0'):
            raise InputError("`delimiter`", f"found {self.delimiter!r}", "a character, or tab", "Pass ; for instance.")

    @property
    def delimiter_character(self) -> str:
        """The character between fields; empty where it is found by the ending and the first line."""
        return {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)

    @property
    def kind(self) -> Kind:
        """What an entry is."""
        return "texts" if self.texts else "images" if self.text is None else "pairs"

    @property
    def named(self) -> list[str]:
        """The columns that the user named."""
        return [name for name in (self.entry, self.id, self.text, *self.keep) if name]

    @property
    def beside(self) -> list[str]:
        """The columns that are asked for besides that of the images or texts."""
        return [name for name in (self.id, self.text, *self.keep) if name]

    @property
    def kept(self) -> list[tuple[str, str]]:
        """The copied columns, with their types."""
        return list(zip(self.keep, self.types or (TEXT,) * len(self.keep), strict=True))

    @property
    def written(self) -> list[tuple[str, str]]:
        """The copied columns as the output names them, with their types: one whose name is taken gets kept_ before."""
        return [(f"kept_{name}" if name.lower() in OWN_COLUMNS else name, kind) for name, kind in self.kept]

    @property
    def taken(self) -> list[tuple[str, str]]:
        """The columns that make `Item.values`, with their types; the texts of a run of texts come before them."""
        return self.kept if self.text is None else [(self.text, TEXT), *self.kept]


@documented
@dataclass(frozen=True)
class OutputPolicy:
    """What is written, and what happens to an output that is there already."""

    normalize: bool = True
    """Write vectors of unit length; False writes features as the model gives them."""
    dtype: VectorDtype = "float32"
    """Number type of the stored vectors."""
    hashes: bool = False
    """Store the sha256 of each image's file; an update then compares it."""
    shard_size: int = 10_000
    """Images per Parquet part."""
    overwrite: bool = False
    """Remove an earlier run's files from the output, instead of resuming that run."""
    update: bool = False
    """Bring the output up to date with a folder that changed: embed only what is new, drop what is gone."""
    save_seconds: float = 45.0
    """Seconds after which the rows of an unfinished part are saved: a run that is killed loses no more than these."""

    def __post_init__(self) -> None:
        check_counts(self, ("shard_size",))
        if not 0 <= self.save_seconds <= MAX_SAVE_SECONDS:
            found, expected = f"found {self.save_seconds}", f"a number from 0 to {MAX_SAVE_SECONDS:,}"
            raise InputError("`save_seconds`", found, expected, "Pass another one.")
        check_words(self)


def list_inputs(source: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return the one or several inputs of a source, as texts."""
    several = source if isinstance(source, (list, tuple)) else [source]
    return tuple(map(str, several))


def check_place(name: str, place: str | Path) -> None:
    """Raise InputError for a place that is written to, and that is not on this machine."""
    if (wrong := explain_place(place)) is not None:
        raise InputError(f"`{name}`", f"{str(place)!r} {wrong[0]}", "a path on this machine", wrong[1])


def check_output(name: str, place: str | Path) -> None:
    """Raise InputError for an output that is neither on this machine nor below a bucket of an object store."""
    if not is_object_url(place):
        check_place(name, place)
        return
    _, bucket, *names = ObjectPath(str(place)).parts
    found = f"{str(place)!r} "
    if os.name == "nt":
        raise InputError(f"`{name}`", f"{found}is on an object store", "a folder here, on Windows", "Pass one.")
    if not names or {".", ".."} & {bucket, *names}:
        raise InputError(f"`{name}`", f"{found}names no folder", "one in a bucket, as in s3://bucket/out", "Pass one.")


def check_counts(options: object, names: Sequence[str]) -> None:
    """Raise InputError for a number below 1, and for more threads than a process can start."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"`{name}`", f"found {value}", "at least 1", "Pass a larger number.")
        if name in ("workers", "threads") and (value or 1) > MAX_THREADS:
            raise InputError(f"`{name}`", f"found {value}", f"at most {MAX_THREADS}", "Pass fewer.")


def check_words(options: Any) -> None:
    """Raise InputError where a field has a word that is not among those of its type."""
    for name, kind in field_types(type(options)).items():
        words = get_args(kind)
        if words and all(isinstance(word, str) for word in words) and getattr(options, name) not in words:
            found = f"found {getattr(options, name)!r}"
            raise InputError(f"`{name}`", found, f"one of {', '.join(words)}", "Pass one.")


def check_cosine(min_cosine: float) -> None:
    """Raise InputError for a bound that no cosine can meet, or that every cosine meets."""
    if not 0 < min_cosine <= 1:
        raise InputError("`min_cosine`", f"found {min_cosine}", "more than 0 and at most 1", "Pass 0.999, say.")


def find_differences(options: Any, default: Any) -> list[str]:
    """Return the names of the fields in which a record differs from another of its type."""
    return [field.name for field in fields(options) if getattr(options, field.name) != getattr(default, field.name)]
