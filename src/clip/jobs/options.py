"""Options that several jobs share, and the checks they have in common. Knows nothing about how they are carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


PixelMode = Literal["exact", "fast"]  # the reference's pixels bit for bit, or nearly and several times faster
Orient = Literal["none", "exif"]  # pixels as stored, or turned as the file says
Background = Literal["none", "white", "black"]
SixteenBit = Literal["clip", "scale"]  # 255 and more is white, or 65535 is
Frames = Literal["first", "all"]
LongText = Literal["fail", "cut"]  # a text of more tokens than the model reads is a failure row, or its tail goes
# What vectors are computed in; "reference" is what OpenAI's code has on the device: fp32 on a CPU, fp16 on CUDA.
Precision = Literal["reference", "fp32", "fp16", "bf16", "int8", "fp8"]


@dataclass(frozen=True)
class Limits:
    """What an image may cost; one that is beyond becomes a failure row before it is decoded."""

    max_bytes: int = 2**31 - 1  # of the file; no format we decode gains from more
    max_pixels: int = 100_000_000  # width times height; Pillow itself refuses 179 million and more
    max_aspect: float | None = None  # the longer side over the shorter; without, only the resized canvas has a limit
    max_frames: int = 1000  # of a file, where all are taken; those beyond become one failure row


@dataclass(frozen=True)
class DecodeOptions:
    """How a file becomes pixels where there is a choice. Each default is what OpenAI's code does."""

    pixels: PixelMode = "exact"  # bit for bit those of OpenAI's code, or nearly those and several times faster
    orient: Orient = "none"
    background: Background = "none"  # what transparent images are laid on; "none" drops their alpha
    sixteen_bit: SixteenBit = "clip"  # for grey images of 16 bits and more
    frames: Frames = "first"  # of animations and files of several pages


VectorDtype = Literal["float32", "float16"]
OnFailure = Literal["record", "stop"]
DuplicateIds = Literal["error", "keep"]
ExportFormat = Literal["npy", "clip-retrieval", "csv", "safetensors"]
DECODE_SECONDS = 60.0  # what an image may take in a process of its own
MAX_SECONDS = 86_400  # a day
FAST_COSINE = 0.999  # the bound of --fast
MAX_THREADS = 1024  # of one kind; torch ends the process when it cannot start all it is asked for


def named_inputs(source: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """What a source names, as texts."""
    several = [source] if isinstance(source, (str, Path)) else source
    return tuple(map(str, several))


def check_counts(job: object, names: Sequence[str]) -> None:
    """Raise InputError for numbers below 1, and for more threads than can be."""
    for name in names:
        value = getattr(job, name)
        if value is not None and value < 1:
            raise InputError(
                name,
                f"found {value}",
                "at least 1",
                "Pass a larger number.",
            )
        if name in ("workers", "threads") and (value or 1) > MAX_THREADS:
            raise InputError(
                name,
                f"found {value}",
                f"at most {MAX_THREADS}",
                "Pass fewer.",
            )


def check_cosine(min_cosine: float) -> None:
    """Raise InputError for a bound that is none."""
    if not 0 < min_cosine <= 1:
        raise InputError(
            "`min_cosine`",
            f"found {min_cosine}",
            "more than 0 and at most 1",
            "Pass 0.999, say.",
        )
