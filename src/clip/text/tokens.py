"""Turn texts into the tokens that a model reads, or into the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..errors import InputError, TextTooLongError
from ..records import Failure, Item, Kind
from ..simple_tokenizer import END, START, SimpleTokenizer, shared_tokenizer, tabulate
from ..tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..jobs.options import LongText


def token_table(
    tokenizer: SimpleTokenizer | TokenizerFile, texts: str | Iterable[str], context_length: int, truncate: bool = False
) -> torch.Tensor:
    """Return the ids of texts, one row per text: start, tokens, end, then zeros; those of a file as it pads them.

    Shapes:  T texts -> int32 (T, context_length).
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types.
    """
    if isinstance(tokenizer, TokenizerFile):
        return torch.from_numpy(tokenizer.tabulate(texts, context_length, truncate))
    return torch.from_numpy(tabulate(tokenizer, texts, context_length, truncate))


def check_ids(tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise InputError for a token table with ids that the vocabulary lacks."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        found = f"found ids from {int(tokens.min())} to {int(tokens.max())}"
        remedy = "Make them with model.tokenize(texts) or Encoder.tokenize(texts), which use that vocabulary."
        raise InputError("`tokens`", found, f"0 to {vocab_size - 1}, those of this model's vocabulary", remedy)


# The time of byte-pair encoding grows with the square of a word's length: 1.7 s for 10,000 random letters, which are
# more tokens than any model reads.
MAX_WORD = 10_000  # characters


class Tokenized(NamedTuple):
    """A text as the model reads it."""

    ids: np.ndarray  # int32 (L,)
    warning: str | None = None  # where its tail is left out


@dataclass(frozen=True)
class Tokenizing:
    """How all texts of a job are tokenized."""

    kind: Kind
    context_length: int
    long_text: LongText
    tokenizer: SimpleTokenizer | TokenizerFile | None = None  # None for the vocabulary of the released models

    def __post_init__(self) -> None:
        if self.kind != "images" and isinstance(self.tokenizer, TokenizerFile):
            self.tokenizer.check()  # once, instead of a failure for each text

    def __call__(self, item: Item) -> Tokenized | Failure:
        """Return the tokens of an item's text, the first of its values, or the reason why there are none."""
        try:
            return self._tokenize(item.values[0])
        except (InputError, TextTooLongError) as exc:
            return Failure.of(item, "read", exc)

    def _tokenize(self, text: str | None) -> Tokenized:
        if text is None:
            raise InputError("text", "its row has no text", remedy="Leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError as exc:  # lists are read with surrogates for bytes that are not UTF-8
            raise InputError("text", "its text is not UTF-8", remedy="Save the list as UTF-8.") from exc
        if isinstance(self.tokenizer, TokenizerFile):
            row, whole = self.tokenizer.encode(text, self.context_length)
            return self._cut(row, is_cut=whole > self.context_length)
        room = self.context_length - 2  # without start and end
        ids: list[int] = []
        tokenizer = self.tokenizer or shared_tokenizer()
        for word in tokenizer.words(text):
            if len(word) > MAX_WORD:
                found = f"a word of {len(word):,} characters"
                raise InputError("text", found, f"at most {MAX_WORD:,}", "Leave it out.")
            ids += tokenizer.encode_word(word)
            if len(ids) > room:
                break  # the rest would be cut, or fails the text
        is_cut = len(ids) > room
        ids = [tokenizer.encoder[START], *ids[:room], tokenizer.encoder[END]]
        return self._cut(np.array(ids + [0] * (self.context_length - len(ids)), np.int32), is_cut=is_cut)

    def _cut(self, ids: np.ndarray, *, is_cut: bool) -> Tokenized:
        """Return the tokens that are left of a text; raise TextTooLongError for a tail, unless the job cuts those."""
        if is_cut and self.long_text == "fail":
            found = f"more than {self.context_length} tokens"
            raise TextTooLongError("text", found, "fewer", 'Shorten it, or pass `long_text="cut"`.')
        warning = f"the text has more than {self.context_length} tokens, and its tail is left out" if is_cut else None
        return Tokenized(ids, warning)
