"""Make src/clip/merges.bin from the vocabulary that OpenAI published.

Usage: python tools/make_merges.py bpe_simple_vocab_16e6.txt.gz

The published file is in openai/CLIP@d05afc4 clip/ and in the wheel of open_clip_torch. Of its merges the first 48,894
are used: each becomes two ids, little-endian uint16; the id of a merge itself is 512 plus its index.
"""

import array
import hashlib
import sys
from pathlib import Path

from clip.simple_tokenizer import SimpleTokenizer, default_bpe

PUBLISHED_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def main() -> None:
    published = Path(sys.argv[1])
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    if digest != PUBLISHED_SHA256:
        sys.exit(f"{published}: sha256 {digest}, expected {PUBLISHED_SHA256}. Download the published file.")
    tokenizer = SimpleTokenizer(str(published))
    ids = array.array("H", (tokenizer.encoder[part] for pair in tokenizer.bpe_ranks for part in pair))
    if sys.byteorder == "big":
        ids.byteswap()
    Path(default_bpe()).write_bytes(ids.tobytes())


if __name__ == "__main__":
    main()
