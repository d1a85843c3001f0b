"""Turn texts into the tokens that a model reads, or into the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..errors import InputError, InputTypeError, TextTooLongError
from ..records import Failure, Item, Kind
from ..simple_tokenizer import END, START, SimpleTokenizer, shared_tokenizer

if TYPE_CHECKING:
    from ..jobs.options import LongText


def token_table(
    tokenizer: SimpleTokenizer, texts: str | Iterable[str], context_length: int, truncate: bool = False
) -> torch.Tensor:
    """Return the ids of texts, one row per text: start, tokens, end, then zeros.

    Shapes:  T texts -> int32 (T, context_length).
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for other types.
    """
    rows = _as_list(texts)
    table = torch.zeros(len(rows), context_length, dtype=torch.int32)
    for i, text in enumerate(rows):
        ids = [tokenizer.encoder[START], *tokenizer.encode(text), tokenizer.encoder[END]]
        if len(ids) > context_length:
            if not truncate:
                expected = f"at most {context_length}: {text[:40]!r}"
                remedy = "Shorten it, or pass `truncate=True` to drop the tail."
                raise TextTooLongError(f"text {i} of {len(rows)}", f"found {len(ids)} tokens", expected, remedy)
            ids = [*ids[: context_length - 1], tokenizer.encoder[END]]
        table[i, : len(ids)] = torch.tensor(ids)
    return table


def check_ids(tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise InputError for a token table with ids that the vocabulary lacks."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        found = f"found ids from {int(tokens.min())} to {int(tokens.max())}"
        remedy = "Make them with model.tokenize(texts) or Encoder.tokenize(texts), which use that vocabulary."
        raise InputError("`tokens`", found, f"0 to {vocab_size - 1}, those of this model's vocabulary", remedy)


def _as_list(texts: object) -> list[str]:
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
    tokenizer: SimpleTokenizer | None = None  # None for the vocabulary of the released models

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
        if is_cut and self.long_text == "fail":
            found = f"more than {self.context_length} tokens"
            raise TextTooLongError("text", found, "fewer", 'Shorten it, or pass `long_text="cut"`.')
        ids = [tokenizer.encoder[START], *ids[:room], tokenizer.encoder[END]]
        warning = f"the text has more than {self.context_length} tokens, and its tail is left out" if is_cut else None
        return Tokenized(np.array(ids + [0] * (self.context_length - len(ids)), np.int32), warning)
