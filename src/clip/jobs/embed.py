"""The job of `clip.embed`, with all that decides which vectors a run writes; its progress; its report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from ..records import STDIN, Kind, as_utf8
from .fields import documented
from .options import (
    CALIBRATED_PRECISIONS,
    Columns,
    DecodeOptions,
    Decoders,
    DuplicateIds,
    Limits,
    LongText,
    ModelOptions,
    OnFailure,
    OutputPolicy,
    Resize,
    check_cosine,
    check_counts,
    check_output,
    check_words,
    find_differences,
    list_inputs,
)
from .part import parse_part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .part import PartOf

IMAGES_ONLY = (
    *("model.batch_size", "policy.hashes", "columns.text", "limits", "decode", "root", "decoders", "isolate"),
    *("resize", "max_seconds", "read_budget_bytes", "decode_budget_bytes", "min_cosine", "calibration"),
)
DECODE_SECONDS = 60.0  # for one image in a separate process
Phase = Literal["loading", "listing", "running"]
MAX_SECONDS = 86_400  # a day
MAX_READERS = 100  # as many connections as aiohttp opens


@documented
@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """All that decides which vectors a run of `clip.embed` writes, and how."""

    source: str | Path | Sequence[str | Path]
    """One or several inputs: folders, patterns, lists, archives, tables, on this machine or on servers."""
    output: str | Path
    """Folder to write, on this machine or, as s3://bucket/out, gs:// or az://, on an object store."""
    model: str | ModelOptions = ModelOptions()  # noqa: RUF009  frozen, as are the next four
    """A model's name or path; or ModelOptions, which also say where and in which precision it computes."""
    decode: DecodeOptions = DecodeOptions()  # noqa: RUF009
    """How files become pixels."""
    limits: Limits = Limits()  # noqa: RUF009
    """What an image may cost."""
    columns: Columns = Columns()  # noqa: RUF009
    """Which columns of lists and tables to read, and what an entry is: an image, a text or a pair."""
    policy: OutputPolicy = OutputPolicy()  # noqa: RUF009
    """What to write, and what to do with an earlier run in the output."""
    globs: tuple[str, ...] = ()
    """Take the paths that match a pattern, instead of those with an image's extension."""
    root: str = ""
    """Folder at which relative paths in lists start; default: for a list as before, else the current folder."""
    limit: int | None = None
    """Number of images to read; default: all."""
    duplicate_ids: DuplicateIds = "error"
    """error: refuse an input in which an id occurs twice; keep: keep both rows."""
    long_text: LongText = "fail"
    """A text of more tokens than the model reads becomes a failure row (fail), or loses its tail (cut)."""
    min_cosine: float | None = None
    """Measure first; take the fastest precision and pixels whose vectors have at least this cosine to exact ones."""
    calibration: str | Path | None = None
    """Folder of images to quantise int8 by; default: the first images of the input."""
    devices: str | None = None
    """GPUs that run the model side by side, as in cuda:0,cuda:1, or all of them; default: the one of `device`."""
    workers: int | None = None
    """Threads or processes that decode; default: one per core."""
    decoders: Decoders = "auto"
    """What decodes: threads, processes, or (auto) processes on a GPU or more than 4 cores, where threads hold it up."""
    resize: Resize = "auto"
    """Where exact pixels are resized, to the same bytes: by the decoders, on the model's device, or (auto) on a GPU."""
    readers: int = 32
    """Images to request from servers at the same time, at most 100."""
    read_budget_bytes: int = 256_000_000
    """Bytes of encoded images that may be held at the same time, from before they are read until they are decoded."""
    decode_budget_bytes: int = 400_000_000
    """Bytes of decoded images that threads may hold at the same time."""
    isolate: bool = False
    """Decode in separate processes, so that an image that kills its decoder becomes a failure row."""
    max_seconds: float | None = None
    """Seconds that decoding an image may take, with isolate; default: 60."""
    part: str | None = None
    """Do one of N parts of the run, I/N with I from 0; auto takes both numbers from Slurm, Kubernetes or AWS Batch."""
    on_failure: OnFailure = "record"
    """record: write a failure row and continue; stop: end the run at the first failure."""
    max_failures: str | None = None
    """Failures after which the run stops: a number, or a part of the input as in 5%; default: never."""

    def __post_init__(self) -> None:
        check_output("output", self.output)
        if self.max_seconds is not None and not (self.isolate and 0 < self.max_seconds <= MAX_SECONDS):
            beside = "with" if self.isolate else "without"
            found = f"found {self.max_seconds} {beside} isolate"
            expected = f"more than 0 and at most {MAX_SECONDS:,}, with isolate, as only a process can be stopped"
            raise InputError("`max_seconds`", found, expected, "Pass `isolate=True` too.")
        if self.policy.update and (self.policy.overwrite or self.duplicate_ids == "keep"):
            other = "overwrite" if self.policy.overwrite else "duplicate_ids"
            raise InputError("`update`", f"found {other} too", "one of them", f"Leave out `{other}`.")
        if self.resize == "device" and (self.decode.pixels != "exact" or self.decode.frames == "all"):
            other = f"{self.decode.pixels} pixels" if self.decode.pixels != "exact" else "all frames"
            raise InputError("`resize`", f"found device with {other}", "decoders", "Leave it out.")
        if self.devices is not None and self.model_options.device != ModelOptions.device:
            found = f"found device {self.model_options.device!r} too"
            raise InputError("`devices`", found, "one of them", "Leave out `device`.")
        if self.isolate and self.decoders == "threads":
            raise InputError("`isolate`", "found decoders='threads' too", "processes", "Leave out `decoders`.")
        self._check_columns()
        self._check_speed()
        self._check_part()
        check_counts(self, ("workers", "readers", "limit", "read_budget_bytes", "decode_budget_bytes"))
        check_words(self)
        if self.readers > MAX_READERS:
            raise InputError("`readers`", f"found {self.readers}", f"at most {MAX_READERS}", "Pass fewer.")
        if self.max_failures is not None and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failures):
            expected = "a number, or a percentage as in 5%"
            raise InputError("`max_failures`", f"found {self.max_failures!r}", expected, "Pass one.")

    def _check_columns(self) -> None:
        if self.columns.texts and (names := self._find_image_options()):
            remedy = f"Leave out {', '.join(f'`{name}`' for name in names)}."
            raise InputError("`texts`", "found options of images too", remedy=remedy)
        if isinstance(self.columns.keep, str):
            raise InputError("`keep`", f"found the text {self.columns.keep!r}", "names", "Pass a tuple of them.")
        seen: set[str] = set()
        for name, (written, _) in zip(self.columns.keep, self.columns.written, strict=True):
            if as_utf8(name) != name:
                raise InputError("`keep`", f"found {name!r}", "UTF-8", "Rename it in the table.")
            if written.lower() in seen:  # upper and lower case are the same, as in SQL
                found = f"found {name!r}, which it has already"
                raise InputError("`keep`", found, "columns of other names", "Leave it out, or rename it in the table.")
            seen.add(written.lower())

    def _find_image_options(self) -> list[str]:
        """Return the names of the options that only images use, and that differ from their defaults."""
        names: list[str] = []
        for path in IMAGES_ONLY:
            first, _, leaf = path.partition(".")
            value = self.model_options if first == "model" else getattr(self, first)
            default = getattr(EmbedJob, first)
            if not is_dataclass(default):
                names += [first] if value != default else []
            else:
                names += [f"{first}.{name}" for name in find_differences(value, default) if leaf in ("", name)]
        return names

    def _check_speed(self) -> None:
        precision, pixels = self.model_options.precision, self.decode.pixels
        quantised = precision in CALIBRATED_PRECISIONS
        reads_twice = self.min_cosine is not None or (quantised and not self.calibration)
        if reads_twice and STDIN in self.inputs:
            item = "`precision`" if self.min_cosine is None else "`min_cosine`"
            found = f"found {precision if self.min_cosine is None else self.min_cosine} with '{STDIN}' as input"
            raise InputError(item, found, "an input that can be read twice", "Write the list to a file.")
        if quantised and self.columns.texts:
            raise InputError("`precision`", f"found {precision} for texts", "images for it", "Pass another precision.")
        if self.min_cosine is not None:
            check_cosine(self.min_cosine)
            if (precision, pixels) != (ModelOptions.precision, DecodeOptions.pixels):
                found = f"found precision {precision} and {pixels} pixels too"
                remedy = "Leave out `precision` and `decode.pixels`."
                raise InputError("`min_cosine`", found, "neither, as it chooses both", remedy)
        elif self.calibration is not None and not quantised:
            those = " or ".join(sorted(CALIBRATED_PRECISIONS))
            raise InputError("`calibration`", f"found precision {precision}", those, f"Leave it out, or pass {those}.")

    def _check_part(self) -> None:
        if self.share is None:
            return
        reasons = {
            "overwrite": (self.policy.overwrite, "Remove the output instead, once."),
            "update": (self.policy.update, "Update with one process, or write another output."),
            "min_cosine": (self.min_cosine is not None, "Run `clip tune`, and pass its precision and pixels."),
            f"{STDIN!r} as input": (STDIN in self.inputs, "Write the list to a file, as only one part lists it."),
        }
        for name, (is_there, remedy) in reasons.items():
            if is_there:
                raise InputError("`part`", f"found {name} too", "a run that several processes can share", remedy)

    @property
    def share(self) -> PartOf | None:
        """Which part of the run to do; None for all of it."""
        return None if self.part is None else parse_part(self.part)

    @property
    def model_options(self) -> ModelOptions:
        """The model's options, also where only its name was given."""
        return ModelOptions.of(self.model)

    @property
    def kind(self) -> Kind:
        """What an entry of the input is."""
        return self.columns.kind

    @property
    def isolated_s(self) -> float | None:
        """Seconds an image may take in a separate process; None without `isolate`."""
        return (self.max_seconds or DECODE_SECONDS) if self.isolate else None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs in `source`, as texts."""
        return list_inputs(self.source)

    def allowed_failures(self, total: int) -> int:
        """Return how many of `total` entries may fail before the run stops."""
        if self.on_failure == "stop":
            return 0
        if self.max_failures is None:
            return total
        if self.max_failures.endswith("%"):
            return int(total * float(self.max_failures[:-1]) / 100)
        return int(self.max_failures)


@documented
@dataclass(frozen=True)
class Listing:
    """What an input holds, as far as it has been listed."""

    images: int = 0
    """Images, or texts, whose number is known."""
    archives: int = 0
    """Archives beside them that do not say how many they hold."""
    example: str = ""
    """The first entry; empty until all is listed."""
    ignored: dict[str, int] = field(default_factory=dict[str, int])
    """Files and folders passed over, by reason; empty until all is listed."""


@documented
@dataclass(frozen=True)
class Estimate:
    """How long a run would take on this machine."""

    measured: int
    """Images that were embedded to measure."""
    images_per_s: float
    """From files to vectors."""
    seconds: float | None
    """For all images, or for those of one part; None where an archive does not say how many it holds."""


@documented
@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    read: int
    """Entries that have a vector or a failure, those of earlier runs included; an image that waits does not count."""
    total: int | None
    """Entries counted before the run; None where an archive does not say; 0 during listing."""
    failed: int
    """Failures among those read."""
    resumed: int = 0
    """Entries read by an earlier run."""
    listing: Listing | None = None
    """What has been listed so far; None once the run itself has begun."""
    shard: int = 0
    """Shards that are finished."""
    shards: int = 0
    """Shards of the run."""
    message: str = ""
    """Something else to say to the user; then the numbers mean nothing."""
    kept: int = 0
    """Entries whose rows or failures are on the disk, so that no later run reads them again."""
    bytes: int = 0
    """Encoded bytes of the images that this run read."""
    loading: str = ""
    """The model that is being loaded; then the numbers mean nothing."""

    @property
    def phase(self) -> Phase:
        """What the run is doing."""
        return "loading" if self.loading else "listing" if self.listing is not None else "running"


@documented
@dataclass(frozen=True)
class EmbedReport:
    """What a run did. read = written + failed."""

    output: Path
    """The folder."""
    read: int
    """Entries read, by earlier runs included."""
    written: int
    """Rows."""
    failed: int
    """Failure rows."""
    ignored: dict[str, int]
    """Files and folders passed over, by reason."""
    seconds: float
    """Duration, start-up included."""
    resumed: int = 0
    """Entries read by an earlier run."""
    removed: int = 0
    """Rows and failures that an update dropped, as they are not listed any more."""
    renamed: int = 0
    """Rows that an update kept under another id, as their images were renamed."""
    warned: int = 0
    """Rows that this run wrote with a warning: metadata is damaged, something follows the image, a text is cut."""
    stored_turned: int = 0
    """Images that this run embedded as they are stored, though their files say that they are to be turned."""
    unread: dict[str, int] = field(default_factory=dict[str, int])
    """HEIC, RAW and video files without a vector, by kind, though nobody chose files with `globs`."""
    part: str = ""
    """Which part of the run this was, as 3/8; then the counts are of its shards."""
    unfinished: tuple[str, ...] = ()
    """Parts whose shards are not all written, as 3/8."""
    advice: tuple[str, ...] = ()
    """What helps with these; text in backticks is an argument as Python spells it."""
