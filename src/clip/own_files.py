"""Recognise what this package writes where it may lie among images: outputs of a run, contact sheets of a search."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

from .atomic_files import open_regular
from .object_paths import is_object_url, open_place

MANIFEST = "manifest.json"
OUTPUT_NAMES = frozenset(
    {MANIFEST, "embeddings", "failures", "_index", "_journal", "_calibration.npy"}
    | {f"_plan{suffix}" for suffix in ("", ".new", ".merged", ".old", ".part")}
)
OUTPUT_KEYS = (b'"weights_sha256"', b'"preprocess"')  # near the begin of every manifest of ours
READ_BYTES = 2**16
OTHER_PLACE = re.compile(r"-|file:.*|[A-Za-z][A-Za-z0-9+.-]+:/.*", re.DOTALL)  # of two letters, as C: is a drive
# A contact sheet says what it is in a text at its begin, and has a length that few files have: a walk, which knows all
# lengths, opens one PNG in 8,192 to look for the text.
SHEET_TEXT = b"Software\0clip-turbo contact sheet "
LENGTH_MODULUS, LENGTH_RESIDUE = 8192, 7195
HEADER_BYTES = 33  # of a PNG: its signature, and the chunk IHDR
CHUNK_OVERHEAD = 12  # length, name and checksum


def is_output(folder: str) -> bool:
    """Whether a folder is the output of a run, by its manifest; others have a manifest.json too."""
    path = open_place(folder) / MANIFEST if is_object_url(folder) else os.path.join(folder, MANIFEST)  # noqa: PTH118
    if isinstance(path, str) and not os.path.lexists(path):
        return False
    try:
        with open_regular(path) as file:
            begin = file.read(READ_BYTES)
    except OSError:
        return False
    return all(key in begin for key in OUTPUT_KEYS)


def mark_contact_sheet(png: bytes) -> bytes:
    """Return a PNG that `is_contact_sheet` knows, with the same pixels.

    Source:  PNG specification, third edition, 5.3 (chunks) and 11.3.3.2 (tEXt).
    """
    length = len(png) + CHUNK_OVERHEAD + len(SHEET_TEXT)
    content = b"tEXt" + SHEET_TEXT + b" " * ((LENGTH_RESIDUE - length) % LENGTH_MODULUS)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:HEADER_BYTES] + chunk + png[HEADER_BYTES:]


def is_contact_sheet(path: str, size_bytes: int) -> bool:
    """Whether a file is a contact sheet of ours; only one of a sheet's length is opened."""
    if size_bytes % LENGTH_MODULUS != LENGTH_RESIDUE:
        return False
    try:
        with open_regular(path) as file:
            begin = file.read(HEADER_BYTES + CHUNK_OVERHEAD + len(SHEET_TEXT))
    except OSError:
        return False  # perhaps an image: reading it makes the failure row
    return begin[HEADER_BYTES + 4 :].startswith(b"tEXt" + SHEET_TEXT)


def explain_place(name: str | Path) -> tuple[str, str] | None:
    """Return why nothing can be written to a place, and what to do instead; None for a folder or file here."""
    text = str(name)
    if not OTHER_PLACE.fullmatch(text):
        return None
    if text == "-":
        return "is standard output", "Pass the name of a folder."
    if text.lower().startswith("file:"):
        return "is a URI", "Pass the path alone, as in /home/me/out."
    return "is on a server, where nothing is written yet", "Pass a folder here, and copy it there when it is done."
