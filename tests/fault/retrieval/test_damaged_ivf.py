"""An IVF index that is cut or changed, wherever: an error that names it, or the same hits; a build that is killed."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import forks, lopsided

import clip
from clip.errors import StoreError
from clip.records import Row, Shard
from clip.store.manifest import Manifest
from clip.store.writer import StoreWriter

ROWS = 600
QUERY = lopsided.draw("photo", 1, np.random.default_rng(1))[0]
DAMAGES = int(os.environ.get("CLIP_SOAK_DAMAGES", "100"))  # 500 in the soak


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "out"
    writer = StoreWriter(path, Manifest(dim=lopsided.DIM, dtype="float16", model="none"))
    writer.begin("input")
    for shard in range(3):
        rows = [Row(f"{shard}-{n}", "in", n, n, "JPEG", n) for n in range(ROWS // 3)]
        writer.commit(Shard(shard, [], "m"), rows, lopsided.draw("photo", len(rows), np.random.default_rng(shard)), [])
    clip.index(clip.IndexJob(output=path, type="ivf"))
    return path


def search(out: Path) -> list[clip.Hit] | None:
    """Return the hits, or None if a file is reported as damaged."""
    try:
        return clip.Index(out).search(vector=QUERY, k=10)
    except StoreError as exc:
        assert "_index/" in str(exc)
        assert "Run clip index to remake it." in str(exc)
        return None


@pytest.mark.parametrize("name", ["ivf.index", "rows.index"])
def test_a_changed_bit_or_a_cut_is_an_error_or_changes_nothing(out: Path, name: str) -> None:
    expected = search(out)
    assert expected is not None
    path = out / "_index" / name
    whole = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    try:
        for number in range(DAMAGES // 2):
            place = rng.randrange(len(whole))
            changed = bytearray(whole)
            changed[place] ^= 1 << rng.randrange(8)
            path.write_bytes(whole[:place] if number % 4 == 0 else changed)
            hits = search(out)
            assert hits in (None, expected), place
            noticed += hits is None
    finally:
        path.write_bytes(whole)
    assert search(out) == expected
    assert noticed > DAMAGES // 8


def test_the_command_makes_a_damaged_index_again(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    expected = search(copy)
    path = copy / "_index/ivf.index"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert search(copy) is None
    assert clip.index(clip.IndexJob(output=copy, type="ivf")).made
    assert search(copy) == expected


@pytest.fixture(scope="module")
def server() -> Iterator[forks.Server]:
    with forks.Server("serve_index") as server:
        yield server


@pytest.mark.parametrize(
    ("what", "at", "done"),
    [
        ("rows stored", 2, ""),
        ("rounds of training", 8, "rows stored"),
        ("rows encoded", 1, "rounds of training"),
        ("lists written", 20, "rows encoded"),
        ("queries measured", 9, "lists written"),
    ],
)
def test_a_build_that_was_killed_is_gone_on_with(
    server: forks.Server, out: Path, tmp_path: Path, what: str, at: int, done: str
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    if what == "rows stored":
        (copy / "_index/rows.index").unlink()
    options = {"type": "ivf", "rebuild": True}
    assert server.ask(out=copy, what=what, at=at, options=options).code == -9
    left = sorted(path.name for path in (copy / "_index/.ivf.build").glob("*"))
    assert ("trained.index" in left) == (what in ("rows encoded", "lists written", "queries measured"))
    assert ("chunk-00000.index" in left) == (what in ("lists written", "queries measured"))
    assert ("merged.index" in left) == (what == "queries measured")
    expected = search(out)
    ended = server.ask(out=copy, what=done, at=1, options=options)  # killed if what was done is done again
    assert (ended.code, ended.answer) == (0, True), ended.said
    assert search(copy) == expected
    assert not (copy / "_index/.ivf.build").exists()
    made, whole = ((one / "_index/ivf.index").read_bytes() for one in (copy, out))
    size = len(whole) - 4_000  # the header behind it has durations
    assert made[:size] == whole[:size]
