"""Decode a HEIC where pi-heif cannot be imported, and print its failure."""

import sys
from pathlib import Path

from clip.images import decode, formats

assert "pi_heif" not in sys.modules, "imported before it is needed"
sys.modules["pi_heif"] = None  # type: ignore[assignment]

from clip.network.records import PreprocessSettings  # noqa: E402
from clip.records import Item  # noqa: E402

path = Path(sys.argv[1])
assert "HEIF" not in formats.decodable_formats()
assert ".heic" not in formats.decodable_extensions()
assert not formats.looks_like_image(str(path))
print(decode.decode(Item("a", "a", 1), path.read_bytes(), PreprocessSettings(16))[0].message)
