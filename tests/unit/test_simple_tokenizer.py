"""The tokenizer beside a slow reference, and its table beside the published file. Golden ids: tests/parity."""

import gzip
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip import simple_tokenizer
from clip.simple_tokenizer import SimpleTokenizer, bytes_to_unicode, get_pairs


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def published() -> str:
    """The file OpenAI published, as another package carries it; that package is read, never imported."""
    path = metadata.distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
    return str(path)


def test_the_table_in_the_package_is_the_published_one(tokenizer: SimpleTokenizer, published: str) -> None:
    lines = gzip.decompress(Path(published).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    assert list(tokenizer.bpe_ranks) == [tuple(line.split()) for line in lines]
    assert Path(simple_tokenizer.default_bpe()).stat().st_size < 200_000
    assert "open_clip" not in sys.modules


def test_the_published_format_is_still_read(tokenizer: SimpleTokenizer, published: str) -> None:
    other = SimpleTokenizer(published)
    assert other.encoder == tokenizer.encoder
    assert other.decoder == tokenizer.decoder
    assert other.encode("Hello, world!") == tokenizer.encode("Hello, world!")


def test_the_vocabulary_has_its_size_and_its_ends(tokenizer: SimpleTokenizer) -> None:
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert len(tokenizer.bpe_ranks) == 48894
    assert [tokenizer.decoder[i] for i in (0, 256, 49406, 49407)] == ["!", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    assert len(set(bytes_to_unicode().values())) == 256


def slow_bpe(ranks: dict[tuple[str, str], int], token: str) -> str:
    """Merge one pair at a time, the first occurrence of the lowest rank."""
    word = [*token[:-1], token[-1] + "</w>"]
    while True:
        ranked = [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]
        if not ranked:
            return " ".join(word)
        _, i = min(ranked)
        word[i : i + 2] = [word[i] + word[i + 1]]


@given(st.text(st.characters(codec="latin-1", categories=["L", "N", "P"]), min_size=1, max_size=30))
def test_merging_equals_the_slow_way(text: str) -> None:
    token = "".join(bytes_to_unicode()[byte] for byte in text.encode())
    assert SHARED.bpe(token) == slow_bpe(SHARED.bpe_ranks, token)


@given(st.sampled_from("ab"), st.integers(1, 40))
def test_merging_runs_of_one_letter_equals_the_slow_way(letter: str, length: int) -> None:
    assert SHARED.bpe(letter * length) == slow_bpe(SHARED.bpe_ranks, letter * length)


SHARED = SimpleTokenizer()


@given(st.text(max_size=60))
def test_every_text_becomes_ids_of_the_vocabulary(text: str) -> None:
    assert all(0 <= token < 49408 for token in SHARED.encode(text))


@given(st.lists(st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=12), max_size=8))
def test_words_come_back_from_their_ids(words: list[str]) -> None:
    assert SHARED.decode(SHARED.encode(" ".join(words))) == "".join(f"{word} " for word in words)


def test_the_cache_of_words_has_an_end(tokenizer: SimpleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_tokenizer, "CACHE_TOKENS", 10)
    small = SimpleTokenizer()
    texts = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(5) for j in range(5)]
    assert [small.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    assert 0 < len(small.cache) <= 10


def test_get_pairs_gives_neighbours() -> None:
    assert get_pairs(("a", "b", "a", "b")) == {("a", "b"), ("b", "a")}


def test_an_id_that_is_none_is_a_key_error(tokenizer: SimpleTokenizer) -> None:
    with pytest.raises(KeyError):
        tokenizer.decode([49408])
