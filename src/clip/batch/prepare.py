"""Turn a chunk of entries into what the model reads: crops, tokens, or reasons why there are none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..records import Failure, Item, Member, Pixels, Row, Tokens, add_warning
from .decode import NO_CROPS, Answer, Chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..text.tokens import Tokenized, Tokenizing


@dataclass(frozen=True)
class Preparing:
    """Decodes images with `decode`, in threads or processes, and tokenizes texts in the calling thread."""

    tokenizing: Tokenizing
    decode: Callable[[Chunk], Answer]

    def __call__(self, chunk: Chunk) -> Answer:
        """Return rows and failures of a chunk, and the tokens of each row; the crops are written where they belong."""
        if self.tokenizing.kind == "images":
            return self.decode(chunk)
        texts = [entry if isinstance(entry, Failure) else self._tokenize(entry) for entry in chunk.entries]
        if self.tokenizing.kind == "texts":
            both = zip(chunk.entries, texts, strict=True)
            outcomes = [text if isinstance(text, Failure) else _make_row(entry) for entry, text in both]
            answer = Answer(outcomes, [1] * len(outcomes))
        else:  # a pair without a text is not decoded
            pairs = zip(chunk.entries, texts, strict=True)
            entries = [text if isinstance(text, Failure) else entry for entry, text in pairs]
            answer = self.decode(replace(chunk, entries=entries))
        of_outcomes = [text for text, count in zip(texts, answer.counts, strict=True) for _ in range(count)]
        return _add_texts(answer, of_outcomes)

    def _tokenize(self, entry: Item | Member) -> Tokenized | Failure:
        return self.tokenizing(entry.item if isinstance(entry, Member) else entry)


def _add_texts(answer: Answer, texts: list[Tokenized | Failure]) -> Answer:
    """Return an answer with the tokens of its rows, and what was wrong with their texts in the rows."""
    outcomes: list[Row | Failure] = []
    tokens: list[np.ndarray] = []
    for outcome, text in zip(answer.outcomes, texts, strict=True):
        if isinstance(outcome, Row) and not isinstance(text, Failure):
            outcomes.append(add_warning(outcome, text.warning))
            tokens.append(text.ids)
        else:
            outcomes.append(outcome)
    warned = sum(isinstance(outcome, Row) and outcome.warning is not None for outcome in outcomes)
    return replace(answer, outcomes=outcomes, tokens=np.stack(tokens) if tokens else None, warned=warned)


def _make_row(entry: Item | Member | Failure) -> Row:
    item = entry.item if isinstance(entry, Member) else cast("Item", entry)
    return Row(item.id, item.path, 0, 0, "", item.size_bytes, values=item.values)


def prepare_entry(entry: Item | Member, prepare: Callable[[Chunk], Answer]) -> list[Pixels | Tokens | Failure]:
    """Return what one entry becomes, in memory of its own."""
    answer = prepare(Chunk([entry], NO_CROPS))
    rows = [outcome for outcome in answer.outcomes if isinstance(outcome, Row)]
    tokens = [None] * len(rows) if answer.tokens is None else list(answer.tokens)
    if answer.overflow is not None:
        made = [Pixels(*parts) for parts in zip(rows, answer.overflow, tokens, strict=True)]
    else:
        made = [Tokens(row, text) for row, text in zip(rows, tokens, strict=True) if text is not None]
    remaining = iter(made)
    return [outcome if isinstance(outcome, Failure) else next(remaining) for outcome in answer.outcomes]
