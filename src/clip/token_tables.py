"""Texts -> the token table that `encode_text` reads, by any tokenizer. Knows nothing about networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from clip.errors import InputError, InputTypeError, TextTooLongError
from clip.simple_tokenizer import END, START

if TYPE_CHECKING:
    from clip.simple_tokenizer import SimpleTokenizer


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
                    f"text {i} of {len(rows)}: found {len(ids)} tokens, expected at most {context_length}: "
                    f"{text[:40]!r}. Shorten it, or pass truncate=True to drop the tail."
                )
            ids = [*ids[: context_length - 1], tokenizer.encoder[END]]
        table[i, : len(ids)] = torch.tensor(ids)
    return table


def check_ids(tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise InputError where a token table has ids that the vocabulary does not."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(
            f"tokens: found ids from {int(tokens.min())} to {int(tokens.max())}, expected 0 to {vocab_size - 1}, those "
            "of this model's vocabulary. Make them with model.tokenize(texts) or Encoder.tokenize(texts), of weights "
            "that bring their vocabulary along."
        )


def _as_list(texts: object) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise InputTypeError(f"texts: found {type(texts).__name__}, expected str or a list of str. Pass one of them.")
    rows: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(
                f"text {i}: found {type(text).__name__}, expected str. Pass a text or a list of texts."
            )
        rows.append(text)
    return rows
