"""Texts -> the tokens that a model reads, or the reason why not. Knows nothing about networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InputError, InputTypeError, TextTooLongError
from ..records import Failure
from ..simple_tokenizer import END, START, shared_tokenizer

if TYPE_CHECKING:
    from ..jobs.options import LongText
    from ..records import Item, Kind
    from ..simple_tokenizer import SimpleTokenizer


def token_table(
    tokenizer: SimpleTokenizer, texts: str | Iterable[str], context_length: int, truncate: bool = False
) -> torch.Tensor:
    """The ids of texts, a row each: start, tokens, end, then zeros.

    Shapes:  T texts -> int32 (T, context_length).
    Raises:  TextTooLongError (a RuntimeError) unless `truncate`, InputTypeError (a TypeError) for what is no text.
    """
    rows = _as_list(texts)
    table = torch.zeros(len(rows), context_length, dtype=torch.int32)
    for i, text in enumerate(rows):
        ids = [tokenizer.encoder[START], *tokenizer.encode(text), tokenizer.encoder[END]]
        if len(ids) > context_length:
            if not truncate:
                raise TextTooLongError(
                    f"text {i} of {len(rows)}",
                    f"found {len(ids)} tokens",
                    f"at most {context_length}: {text[:40]!r}",
                    "Shorten it, or pass truncate=True to drop the tail.",
                )
            ids = [*ids[: context_length - 1], tokenizer.encoder[END]]
        table[i, : len(ids)] = torch.tensor(ids)
    return table


def check_ids(tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise InputError where a token table has ids that the vocabulary does not."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(
            "tokens",
            f"found ids from {int(tokens.min())} to {int(tokens.max())}",
            f"0 to {vocab_size - 1}, those of this model's vocabulary",
            "Make them with model.tokenize(texts) or Encoder.tokenize(texts), of weights that bring "
            "their vocabulary along.",
        )


def _as_list(texts: object) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise InputTypeError(
            "texts",
            f"found {type(texts).__name__}",
            "str or a list of str",
            "Pass one of them.",
        )
    rows: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(
                f"text {i}",
                f"found {type(text).__name__}",
                "str",
                "Pass a text or a list of texts.",
            )
        rows.append(text)
    return rows


# What byte-pair encoding takes grows with the square of a word: 1.7 s for 10,000 random letters, which are more tokens
# than any model reads.
MAX_WORD = 10_000


@dataclass(frozen=True)
class Tokenizing:
    """What is the same for all texts of a job."""

    kind: Kind
    context_length: int
    long_text: LongText
    tokenizer: SimpleTokenizer | None = None  # of the model's own vocabulary; None for that of the released models

    def __call__(self, item: Item) -> np.ndarray | Failure:
        """The text of an item, the first of its values -> int32 (L,), or the reason why there are no tokens."""
        text = item.values[0]
        if text is None:
            return _failure(item, InputError, "its row has no text, expected one. Leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError:  # as lists are read, a byte that is none has become a surrogate
            return _failure(item, InputError, "its text is not UTF-8, expected that. Save the list as UTF-8.")
        room = self.context_length - 2  # beside start and end
        ids: list[int] = []
        tokenizer = self.tokenizer or shared_tokenizer()
        for word in tokenizer.words(text):
            if len(word) > MAX_WORD:
                message = f"a word of {len(word):,} characters, expected at most {MAX_WORD:,}. Leave it out."
                return _failure(item, InputError, message)
            ids += tokenizer.encode_word(word)
            if len(ids) > room:
                break  # what follows need not be known
        if len(ids) > room and self.long_text == "fail":
            message = f"more than {self.context_length} tokens, expected fewer. Shorten it, or pass --long-text cut."
            return _failure(item, TextTooLongError, message)
        ids = [tokenizer.encoder[START], *ids[:room], tokenizer.encoder[END]]
        return np.array(ids + [0] * (self.context_length - len(ids)), np.int32)


def _failure(item: Item, error: type[Exception], message: str) -> Failure:
    return Failure(item.id, item.path, "read", error.__name__, message)
