"""Texts to the tokens that a model reads, or the reason why not. Knows nothing about models but how much they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clip.errors import InputError, TextTooLongError
from clip.items import Failure
from clip.simple_tokenizer import END, START, shared_tokenizer

if TYPE_CHECKING:
    from clip.items import Item, Kind, LongText
    from clip.simple_tokenizer import SimpleTokenizer

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
