"""Files that people keep beside their images and that are not read as they are: HEIC, RAW photos, videos."""

from __future__ import annotations

from pathlib import Path

from .formats import decodable_extensions
from .heif import is_heif
from .raw import is_raw

HEIC, RAW, VIDEO = "HEIC", "RAW", "video"
HEIC_ENDINGS = frozenset({".heic", ".heif", ".hif"})
RAW_ENDINGS = frozenset(
    {
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc"),
        *(".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
        ".x3f",
    }
)
VIDEO_ENDINGS = frozenset(
    {
        *(".mov", ".mp4", ".m4v", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".vob"),
        *(".wmv", ".asf", ".flv", ".ogv", ".insv", ".lrv", ".360"),
    }
)
# What to do about each; text in backticks is an argument as Python spells it.
REMEDIES = {
    HEIC: "pip install 'clip-turbo[heic]'",
    RAW: "pass `decode.raw_previews=True` to embed the JPEG inside each",
    VIDEO: "take images out of each, as with: ffmpeg -i VIDEO -vf fps=1 %04d.jpg",
}
MATROSKA, AVI = b"\x1aE\xdf\xa3", b"AVI "
# How the names of formats in such boxes begin; those of images are others. Source: mp4ra.org, brands.
VIDEO_BRANDS = (b"iso", b"mp4", b"qt  ", b"M4V", b"3gp", b"3g2", b"avc1", b"MSNV", b"f4v ", b"dash", b"XAVC")


def get_unread_kind(name: str) -> str | None:
    """Return HEIC, RAW or video for a file that is not read, by its name; None for any other."""
    extension = Path(name).suffix.lower()
    if not extension or extension in decodable_extensions():
        return None
    kinds = {HEIC: HEIC_ENDINGS, RAW: RAW_ENDINGS, VIDEO: VIDEO_ENDINGS}
    return next((kind for kind, endings in kinds.items() if extension in endings), None)


def is_raw_name(name: str) -> bool:
    """Whether a file is a RAW photo, by its name."""
    return Path(name).suffix.lower() in RAW_ENDINGS


def sniff_unread_kind(data: bytes) -> str | None:
    """Return HEIC, RAW or video for an encoded file, by its content; None for any other."""
    if is_heif(data):
        return HEIC
    if is_raw(data):
        return RAW
    in_boxes = data[4:8] == b"ftyp" and data[8:12].startswith(VIDEO_BRANDS)
    is_video = in_boxes or data.startswith(MATROSKA) or (data[:4] == b"RIFF" and data[8:12] == AVI)
    return VIDEO if is_video else None
