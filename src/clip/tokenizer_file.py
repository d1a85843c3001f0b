"""Turn text into token ids by a `tokenizer.json`, the file in which the `tokenizers` library keeps a vocabulary.

It is that of the models whose vocabulary is not OpenAI's: SigLIP's has 32,000 pieces, SigLIP 2's, which is Gemma's,
256,000. The library comes with the extra `siglip`, and is imported, and the file read, for the first text.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import ftfy
import numpy as np

from .errors import CheckpointError, InputError, InputTypeError, MissingExtraError, TextTooLongError, quote

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# How texts are cleaned first. SigLIP 2 was trained on lower case; SigLIP without punctuation too, and open_clip removes
# it for both, after repairing texts as OpenAI's tokenizer does.
Clean = Literal["lower", "canonicalize", "open_clip"]
UNIGRAM = re.compile(r'"type"\s*:\s*"Unigram"')
PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize(text: str) -> str:
    """Return a text in lower case, without ASCII's punctuation, with single blanks.

    Source:  transformers 5.23 models/siglip/tokenization_siglip.py, canonicalize_text.
    """
    return re.sub(r"\s+", " ", text.lower().translate(PUNCTUATION)).strip()


def canonicalize_as_open_clip(text: str) -> str:
    """Repair a text and canonicalize it; an underscore becomes a blank. Source: open_clip 3.3.0 tokenizer.py."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(repaired.replace("_", " ").translate(PUNCTUATION).lower().split())


CLEANERS: dict[Clean, Callable[[str], str]] = {
    "lower": lambda text: text,  # in the library, as its lower case is not Python's: final sigmas
    "canonicalize": canonicalize,
    "open_clip": canonicalize_as_open_clip,
}


def list_texts(texts: object) -> list[str]:
    """Return one text or several as a list. Raises: InputTypeError (a TypeError) for anything else."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        found = f"found {type(texts).__name__}"
        raise InputTypeError("`texts`", found, "str or a list of str", "Pass a text or a list of texts.")
    rows: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"text {i}", f"found {type(text).__name__}", "str", "Pass a text or a list of texts.")
        rows.append(text)
    return rows


@dataclass(frozen=True)
class TokenizerFile:
    """The vocabulary of a model, and how its texts are cleaned, padded and cut; every text fills the whole table."""

    content: str | None  # of tokenizer.json; None where the weights came without one
    source: str  # the file, for errors
    clean: Clean
    pad: str  # the token that fills a table
    pad_left: bool = False
    adds: tuple[bool, bool] | None = None  # start and end tokens; None: as the file says
    start: str = "<bos>"
    end: str = "<eos>"

    @cached_property
    def _library(self) -> Any:
        """The library's tokenizer of the file, which neither cuts nor pads."""
        if self.content is None:
            found = f"the weights have no {TOKENIZER_FILE}, without which texts have no tokens"
            raise InputError(self.source, found, remedy="Fetch it into their folder; images need none.")
        try:
            tokenizers: Any = import_module("tokenizers")
        except ImportError as exc:
            remedy = "Run: pip install 'clip-turbo[siglip]'"
            raise MissingExtraError(self.source, "tokenizers, which reads it, is not installed", remedy=remedy) from exc
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.content)
        except Exception as exc:  # what the library raises has no type of its own
            found = f"not a vocabulary of the tokenizers library ({quote(str(exc))})"
            raise CheckpointError(self.source, found, f"a {TOKENIZER_FILE}", "Fetch it again.") from exc
        tokenizer.no_truncation()
        tokenizer.no_padding()
        lower = tokenizers.normalizers.Lowercase()
        if self.clean == "lower":  # twice is the same as once, where the file says it too
            own = tokenizer.normalizer
            tokenizer.normalizer = lower if own is None else tokenizers.normalizers.Sequence([lower, own])
        if self.adds is not None:
            names = [name if adds else "" for name, adds in zip((self.start, self.end), self.adds, strict=True)]
            ids = [(name, self._find(tokenizer, name)) for name in names if name]
            template = " ".join(filter(None, (names[0], "$A", names[1])))
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=ids)
        return tokenizer

    def check(self) -> None:
        """Raise what keeps texts from being encoded: as `tabulate`."""
        _ = self._library

    def _find(self, tokenizer: Any, token: str) -> int:
        number = tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointError(self.source, f"has no token {quote(token)}", "it", "Fetch it again.")
        return number

    def encode(self, text: str, length: int) -> tuple[np.ndarray, int]:
        """Return the ids of a text, cut and padded, and how many it has before that. Shapes: -> int32 (length,)."""
        library = self._library
        encoding = library.encode(CLEANERS[self.clean](text), add_special_tokens=False)
        added = library.num_special_tokens_to_add(False)
        whole = len(encoding.ids) + added
        encoding.truncate(max(0, length - added))
        ids = library.post_process(encoding).ids[:length]
        row = np.full(length, self._find(library, self.pad), np.int32)
        row[slice(length - len(ids), None) if self.pad_left else slice(len(ids))] = ids
        return row, whole

    def tabulate(self, texts: str | Iterable[str], length: int, truncate: bool = False) -> np.ndarray:
        """Return the ids of texts, one row per text. Shapes: T texts -> int32 (T, length).

        Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types;
                 InputError where there is no vocabulary, MissingExtraError without the extra `siglip`.
        """
        rows = list_texts(texts)
        table = np.empty((len(rows), length), np.int32)
        for i, text in enumerate(rows):
            table[i], whole = self.encode(text, length)
            if whole > length and not truncate:
                expected = f"at most {length}: {text[:40]!r}"
                remedy = "Shorten it, or pass `truncate=True` to drop the tail."
                raise TextTooLongError(f"text {i} of {len(rows)}", f"found {whole} tokens", expected, remedy)
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_library"}  # read again where it goes


def read_tokenizer_file(
    content: str | None, config: dict[str, Any], source: str, clean: Clean | None = None
) -> TokenizerFile:
    """Return the vocabulary of a tokenizer.json with what the tokenizer_config.json beside it says.

    Without `clean` texts are cleaned as transformers does: of SigLIP, whose pieces are a unigram model's, punctuation
    goes too.
    """
    # Not parsed: that is the library's work, of 34 MB for SigLIP 2, and images need none of it.
    unigram = content is not None and UNIGRAM.search(content) is not None
    clean = clean or ("canonicalize" if unigram else "lower")
    adds = (config.get("add_bos_token"), config.get("add_eos_token"))
    return TokenizerFile(
        content,
        source,
        clean,
        pad=_read_token(config, "pad_token", "</s>" if unigram else "<pad>"),
        pad_left=config.get("padding_side") == "left",
        adds=None if adds == (None, None) else (adds[0] is True, adds[1] is True),
        start=_read_token(config, "bos_token", "<bos>"),
        end=_read_token(config, "eos_token", "</s>" if unigram else "<eos>"),
    )


def _read_token(config: dict[str, Any], name: str, default: str) -> str:
    """Return a token's text, which transformers writes as it is or under "content"."""
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default
