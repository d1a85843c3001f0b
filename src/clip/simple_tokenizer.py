"""Turn text into token ids and back, by OpenAI's byte-pair encoding.

The vocabulary is `merges.bin` beside this file: the 48,894 merges that the tokenizer uses, each a pair of ids.
tools/make_merges.py wrote it from the file OpenAI published. Names are those of openai/CLIP@d05afc4
clip/simple_tokenizer.py.
"""

from __future__ import annotations

import array
import gzip
import html
import os
import reprlib
import sys
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import ftfy
import numpy as np
import regex as re

from .errors import CheckpointError, TextTooLongError
from .tokenizer_file import list_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# With the modules that OpenAI's imports: its star import brings them.
__all__ = ["SimpleTokenizer", "basic_clean", "bytes_to_unicode", "default_bpe", "get_pairs", "whitespace_clean"]
__all__ += ["ftfy", "gzip", "html", "lru_cache", "os", "re"]


MERGES = 49152 - 256 - 2  # lines of the published file that are used: 48 Ki ids without bytes and special tokens
CACHE_TOKENS = 65_536  # words in the cache; a book in English has some 10,000
START, END = "<|startoftext|>", "<|endoftext|>"
GZIP_MAGIC = b"\x1f\x8b"


@cache
def default_bpe() -> str:
    """Return the path of the merges that come with the package."""
    return str(Path(__file__).with_name("merges.bin"))


@cache
def bytes_to_unicode() -> dict[int, str]:
    """Return a printable character for each byte, in the order of the first 256 ids.

    Printable bytes of Latin-1 map to themselves, the others to the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


def get_pairs(word: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the pairs of neighbouring symbols of a word."""
    return set(pairwise(word))


def join_pairs(symbols: list[str], pair: tuple[str, ...]) -> list[str]:
    """Return the symbols of a word with every occurrence of this pair joined."""
    joined: list[str] = []
    for symbol in symbols:
        # A joined symbol is longer than the left half, so it cannot be joined a second time.
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def basic_clean(text: str) -> str:
    """Repair mojibake, undo HTML escapes twice (many captions are escaped twice) and strip."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """Replace every run of white space by one blank and strip."""
    return re.sub(r"\s+", " ", text).strip()


def _first_symbols() -> list[str]:
    characters = list(bytes_to_unicode().values())
    return characters + [character + "</w>" for character in characters]


def read_merges(path: str) -> list[tuple[str, ...]]:
    """Return the merges of a file, most frequent first. It has our format, pairs of ids, or OpenAI's, gzipped lines."""
    content = Path(path).read_bytes()
    if content.startswith(GZIP_MAGIC):
        lines = gzip.decompress(content).decode("utf-8").split("\n")[1 : MERGES + 1]  # the first is a comment
        return [tuple(line.split()) for line in lines]
    ids = array.array("H", content)
    if sys.byteorder == "big":
        ids.byteswap()
    symbols = _first_symbols()
    merges: list[tuple[str, ...]] = []
    for left, right in zip(ids[::2], ids[1::2], strict=True):
        merges.append((symbols[left], symbols[right]))
        symbols.append(symbols[left] + symbols[right])
    return merges


class SimpleTokenizer:
    """OpenAI's tokenizer, which encodes lower-cased text and decodes ids."""

    def __init__(self, bpe_path: str | None = None, *, merges: Sequence[tuple[str, ...]] | None = None) -> None:
        """Read the merges of `bpe_path`, in OpenAI's format or ours; by default the package's.

        `merges` are those of another vocabulary, most frequent first, each a pair of symbols that earlier ones made.
        """
        merges = read_merges(bpe_path or default_bpe()) if merges is None else merges
        symbols = _first_symbols() + ["".join(pair) for pair in merges] + [START, END]
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        self.encoder = {symbol: n for n, symbol in enumerate(symbols)}
        self.decoder = dict(enumerate(symbols))
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache: dict[str, str] = {}
        # The two special strings, English contractions, words, single digits, runs of anything else.
        self.pat = re.compile(
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            re.IGNORECASE,
        )

    def bpe(self, token: str) -> str:
        """Return the symbols of a word, which has one character per byte, separated by blanks."""
        if token in (START, END):
            return token
        symbols = self.cache.get(token)
        if symbols is None:
            if len(self.cache) >= CACHE_TOKENS:
                self.cache.clear()
            symbols = self.cache[token] = " ".join(self._merge(token))
        return symbols

    def _merge(self, token: str) -> list[str]:
        word = [*token[:-1], token[-1] + "</w>"]
        while len(word) > 1:
            best = min(pairwise(word), key=lambda pair: self.bpe_ranks.get(pair, len(self.bpe_ranks)))
            if best not in self.bpe_ranks:
                break
            word = join_pairs(word, best)
        return word

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        return [token for word in self.words(text) for token in self.encode_word(word)]

    def words(self, text: str) -> Iterator[str]:
        """Yield the words of a text and the punctuation between them, cleaned and in lower case."""
        return (match[0] for match in self.pat.finditer(whitespace_clean(basic_clean(text)).lower()))

    def encode_word(self, word: str) -> list[int]:
        """Return the ids of one of `words`."""
        characters = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
        return [self.encoder[symbol] for symbol in self.bpe(characters).split(" ")]

    def decode(self, tokens: list[int]) -> str:
        """Return the lower-cased text of ids, with a blank after each word. Raises KeyError for an unknown id."""
        text = "".join(self.decoder[token] for token in tokens)
        content = bytes(self.byte_decoder[character] for character in text)
        return content.decode("utf-8", errors="replace").replace("</w>", " ")


def make_tokenizer(lines: object, vocab_size: int) -> SimpleTokenizer:
    """Return the tokenizer of a weights file's merges: a list of texts, each two symbols with a blank between.

    Raises:  CheckpointError for other values, and for merges that make more ids than `vocab_size`.
    """
    known = set(_first_symbols())
    merges: list[tuple[str, ...]] = []
    for place, line in enumerate(lines if isinstance(lines, list) else [lines]):
        pair = tuple(line.split(" ")) if isinstance(line, str) else ()
        if len(pair) != 2 or not known.issuperset(pair) or "".join(pair) in known:
            found = f"merge {place} is {reprlib.repr(line)}"
            expected = "two symbols that merges before it made, with a blank between, and together a new one"
            raise CheckpointError("weights", found, expected, "Export the weights again.")
        known.add("".join(pair))
        merges.append(pair)
    tokenizer = SimpleTokenizer(merges=merges)
    if len(tokenizer.decoder) > vocab_size:
        found = f"a vocabulary of {len(tokenizer.decoder):,} ids"
        remedy = "Export the weights with their own."
        raise CheckpointError("weights", found, f"at most the {vocab_size:,} of the token embedding", remedy)
    return tokenizer


def tabulate(
    tokenizer: SimpleTokenizer, texts: str | Iterable[str], context_length: int, truncate: bool = False
) -> np.ndarray:
    """Return the ids of texts, one row per text: start, tokens, end, then zeros.

    Shapes:  T texts -> int32 (T, context_length).
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types.
    """
    rows = list_texts(texts)
    table = np.zeros((len(rows), context_length), np.int32)
    for i, text in enumerate(rows):
        ids = [tokenizer.encoder[START], *tokenizer.encode(text), tokenizer.encoder[END]]
        if len(ids) > context_length:
            if not truncate:
                expected = f"at most {context_length}: {text[:40]!r}"
                remedy = "Shorten it, or pass `truncate=True` to drop the tail."
                raise TextTooLongError(f"text {i} of {len(rows)}", f"found {len(ids)} tokens", expected, remedy)
            ids = [*ids[: context_length - 1], tokenizer.encoder[END]]
        table[i, : len(ids)] = ids
    return table


@cache
def shared_tokenizer() -> SimpleTokenizer:
    """Return the tokenizer of the released models, which is read at first use, in 30 ms."""
    return SimpleTokenizer()
