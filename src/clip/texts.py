"""Texts to the tokens that a model reads, or the reason why not. Knows nothing about models but how much they read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip.clip import tokenize
from clip.errors import InputError, TextTooLongError
from clip.items import Failure

if TYPE_CHECKING:
    import numpy as np

    from clip.items import Item, Kind, LongText

# What byte-pair encoding takes grows with the square of a word: 1.7 s for 10,000 letters at random.
MAX_WORD = 10_000
LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")


@dataclass(frozen=True)
class Tokenizing:
    """What is the same for all texts of a job."""

    kind: Kind
    context_length: int
    long_text: LongText

    def __call__(self, item: Item) -> np.ndarray | Failure:
        """The text of an item, the first of its values -> int32 (L,), or the reason why there are no tokens."""
        text = item.values[0]
        if text is None:
            return _failure(item, InputError, "its row has no text, expected one. Leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError:  # as lists are read, a byte that is none has become a surrogate
            return _failure(item, InputError, "its text is not UTF-8, expected that. Save the list as UTF-8.")
        if longest := LONG_WORD.search(text):
            message = f"{len(longest[0]):,} characters without a blank, expected at most {MAX_WORD:,}. Leave it out."
            return _failure(item, InputError, message)
        try:
            return tokenize([text], self.context_length, truncate=self.long_text == "cut").numpy()[0]  # (1, L) -> (L,)
        except TextTooLongError:
            message = f"more than {self.context_length} tokens, expected fewer. Shorten it, or pass --long-text cut."
            return _failure(item, TextTooLongError, message)


def _failure(item: Item, error: type[Exception], message: str) -> Failure:
    return Failure(item.id, item.path, "read", error.__name__, message)
