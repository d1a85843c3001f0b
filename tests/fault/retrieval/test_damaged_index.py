"""An index whose file is cut or changed, wherever: an error that names it, or the right hits; never wrong ones."""

from pathlib import Path

import numpy as np
import pytest

import clip
from clip.errors import StoreError
from clip.records import Row, Shard
from clip.retrieval.index_file import FILE, check_index
from clip.store.manifest import Manifest
from clip.store.reader import Store
from clip.store.rows_file import ROWS_FILE
from clip.store.writer import StoreWriter

DIM, ROWS, QUERY = 4, 90, np.array([1.0, 2.0, 3.0, 4.0])  # vectors of more than a block


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out")
    writer = StoreWriter(path, Manifest(dim=DIM, dtype="float32", model="m"))
    writer.begin("input")
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    writer.commit(Shard(0, [], "m"), [Row(f"{n}.jpg", "in", n, n, "JPEG", n) for n in range(ROWS)], vectors, [])
    return path


def search(out: Path) -> list[clip.Hit] | None:
    """Return the hits, or None if the index is reported as damaged."""
    try:
        return clip.Index(out).search(vector=QUERY, k=5)
    except StoreError as exc:
        assert str(exc).startswith(tuple(f"{out / '_index' / name}: damaged (" for name in (FILE, ROWS_FILE)))
        assert "Run clip index to remake it." in str(exc)
        return None


@pytest.mark.parametrize("name", [FILE, ROWS_FILE])
def test_a_changed_bit_is_an_error_or_changes_nothing(out: Path, name: str) -> None:
    expected = search(out)
    assert expected is not None
    path = out / "_index" / name
    whole = path.read_bytes()
    occupied = [place for place, byte in enumerate(whole) if byte]  # between sections there are zeros
    places = [*occupied[::7], *range(0, len(whole), 61), *range(8), *range(len(whole) - 20, len(whole))]
    noticed = set[int]()
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        hits = search(out)
        assert hits in (None, expected), place
        if hits is None:
            noticed.add(place)
    path.write_bytes(whole)
    assert search(out) == expected
    assert noticed >= set(places[-20:]) | set(range(8))
    share = 0.9 if name == FILE else 0.3  # the others lie in vectors that no candidate needed
    assert len(noticed) > share * len(set(occupied[::7]))


def test_each_vector_is_checked_when_it_is_a_candidate(out: Path) -> None:
    expected = search(out)
    path = out / "_index" / ROWS_FILE
    whole = path.read_bytes()
    numbers = Store(out).vectors().tobytes()
    start = whole.index(numbers)
    for row in range(0, ROWS, 10):
        changed = bytearray(whole)
        changed[start + row * DIM * 4 + 3] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="of its vectors is not as it was written"):
            clip.Index(out).search(vector=np.frombuffer(numbers, np.float32).reshape(-1, DIM)[row], k=1)
    path.write_bytes(whole)
    assert search(out) == expected


@pytest.mark.parametrize("name", [FILE, ROWS_FILE])
def test_a_file_that_is_cut_is_an_error(out: Path, name: str) -> None:
    assert search(out) is not None
    path = out / "_index" / name
    whole = path.read_bytes()
    for size in [*range(0, 40), *range(40, len(whole), 101), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:size])
        assert search(out) is None, size
    path.write_bytes(whole + b"\0")
    assert search(out) is None
    path.write_bytes(whole)


def test_a_damaged_index_is_made_again_by_the_command(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = search(out)
    path = out / "_index" / ROWS_FILE
    whole = path.read_bytes()
    start = whole.index(Store(out).vectors().tobytes())
    path.write_bytes(whole[: start + 5] + b"\xff\xff" + whole[start + 7 :])
    _, made = check_index(Store(out))
    assert made
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole
    assert search(out) == expected
