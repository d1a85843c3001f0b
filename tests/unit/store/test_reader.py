"""clip.Store: reads what a run wrote, in order, and maps the vectors of the parts as they are now."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip
from clip.errors import StoreError
from clip.records import Failure, Row, Shard
from clip.store import rows_file
from clip.store.manifest import Manifest
from clip.store.writer import StoreWriter

DIM = 4


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def rows(count: int, shard: int) -> list[Row]:
    return [Row(f"{shard}-{n}.jpg", f"in/{shard}-{n}.jpg", 640 + n, 480, "JPEG", 100 + n) for n in range(count)]


def write(path: Path, dtype: str = "float32") -> StoreWriter:
    """Three shards of 2, 0 and 3 rows, and a failure."""
    writer = StoreWriter(path, Manifest(dim=DIM, dtype=dtype, model="m"))
    writer.begin("input")
    for shard, count in ((0, 2), (1, 0), (2, 3)):
        failures = [Failure("bad.jpg", "in/bad.jpg", "decode", "OSError", "broken")] if shard == 1 else []
        writer.commit(Shard(shard, [], "fingerprint"), rows(count, shard), vectors(count, shard), failures)
    return writer


EXPECTED = np.concatenate([vectors(2, 0), vectors(3, 2)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_vectors_and_failures_come_back_in_input_order(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, dtype)
    store = clip.Store(tmp_path)
    table, mapped = store.table(), store.vectors()
    assert table.column("id").to_pylist() == ["0-0.jpg", "0-1.jpg", "2-0.jpg", "2-1.jpg", "2-2.jpg"]
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), dtype), EXPECTED.astype(dtype))
    assert np.array_equal(mapped, EXPECTED.astype(dtype))
    assert mapped.dtype == dtype
    assert not mapped.flags.owndata
    assert not mapped.flags.writeable
    assert store.table(["id", "width"]).column_names == ["id", "width"]
    assert store.failures().column("id").to_pylist() == ["bad.jpg"]
    assert (store.dim, store.manifest.model) == (DIM, "m")


def test_an_empty_run_has_empty_tables(tmp_path: Path) -> None:
    StoreWriter(tmp_path, Manifest(dim=DIM)).begin("input")
    store = clip.Store(tmp_path)
    assert store.table().num_rows == store.failures().num_rows == 0
    assert store.table().schema == store.schema
    assert store.vectors().shape == (0, DIM)


def test_part_100000_comes_after_part_99999(tmp_path: Path) -> None:
    writer = write(tmp_path)
    for shard in (100_000, 99_999):
        writer.commit(Shard(shard, [], "fingerprint"), rows(1, shard), vectors(1, shard), [])
    assert clip.Store(tmp_path).table().column("id").to_pylist()[-2:] == ["99999-0.jpg", "100000-0.jpg"]


def test_mapped_vectors_are_made_once_and_again_when_parts_change(tmp_path: Path) -> None:
    writer, store, path = write(tmp_path), clip.Store(tmp_path), tmp_path / "_index/rows.index"
    store.vectors()
    made = path.stat().st_ino
    assert np.array_equal(clip.Store(tmp_path).vectors(), EXPECTED)
    assert path.stat().st_ino == made
    writer.commit(Shard(0, [], "fingerprint"), rows(2, 0), vectors(2, 9), [])
    assert np.array_equal(store.vectors()[:2], vectors(2, 9))
    (tmp_path / "embeddings/part-00002.parquet").unlink()
    assert np.array_equal(store.vectors(), vectors(2, 9))


def test_the_copies_of_earlier_versions_are_removed(tmp_path: Path) -> None:
    write(tmp_path)
    index = tmp_path / "_index"
    index.mkdir()
    for name in ("vectors.npy", "vectors.json"):
        (index / name).write_text("of before")
    assert np.array_equal(clip.Store(tmp_path).vectors(), EXPECTED)
    assert sorted(path.name for path in index.iterdir()) == [".rows.guard", "rows.index"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bit_that_changed_in_the_mapped_file_is_refused_and_the_file_can_be_made_again(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_file, "VECTOR_BLOCK_ROWS", 2)  # several blocks, the last one not full
    write(tmp_path, dtype)
    path = tmp_path / "_index/rows.index"
    expected = np.array(clip.Store(tmp_path).vectors())
    whole = path.read_bytes()
    start = whole.index(expected.tobytes())
    for place in [*range(start, start + expected.nbytes), *range(8), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"rows\.index: damaged \(.* Run clip index to remake it"):
            clip.Store(tmp_path).vectors()
    path.unlink()
    assert np.array_equal(clip.Store(tmp_path).vectors(), expected)


def test_rows_that_are_missing_from_a_run_that_is_over_are_an_error(tmp_path: Path) -> None:
    writer = write(tmp_path)
    writer.finish({"read": 6, "written": 5, "failed": 1})
    store = clip.Store(tmp_path)
    assert (store.table().num_rows, store.failures().num_rows, len(store.vectors())) == (5, 1, 5)
    (tmp_path / "embeddings/part-00002.parquet").unlink()
    for ask in (store.table, store.vectors):
        with pytest.raises(StoreError, match="parts hold 2 rows, expected 5 as the manifest says"):
            ask()
    (tmp_path / "failures/part-00001.parquet").unlink()
    with pytest.raises(StoreError, match="parts hold 0 rows, expected 1 as the manifest says"):
        store.failures()
    writer.finish(None)  # a job begins
    assert store.table().num_rows == 2


def test_where_nothing_can_be_written_vectors_are_mapped_from_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    read = clip.Store(tmp_path).vectors()
    assert np.array_equal(read, EXPECTED)
    assert "the rows are copied to a temporary file" in caplog.text


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "a web application"}'])
def test_a_folder_without_a_manifest_of_ours_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"holds no vectors, expected the output of clip embed"):
        clip.Store(tmp_path)


@pytest.mark.parametrize("ask", ["table", "vectors"])
def test_a_damaged_part_is_named(tmp_path: Path, ask: str) -> None:
    write(tmp_path)
    part = tmp_path / "embeddings/part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"embeddings/part-00002.parquet: cannot be read"):
        getattr(clip.Store(tmp_path), ask)()
