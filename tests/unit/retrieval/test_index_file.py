"""OUT/_index/exact.index: made of the parts, found again, made anew when they change; its hits are an oracle's."""

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.exact import exact_scores, near_zero
from kit.outputs import write_part

import clip
from clip.errors import StoreBusyError, StoreError
from clip.records import Row, Shard
from clip.retrieval import index_file as module
from clip.retrieval.index_file import FILE, check_index, open_index
from clip.retrieval.scan import ScanEngine
from clip.store import rows_file
from clip.store.manifest import Manifest
from clip.store.reader import Store
from clip.store.writer import StoreWriter

DIM = 6


def write(path: Path, shards: list[tuple[list[str], np.ndarray]], dtype: str = "float32") -> StoreWriter:
    """An output whose shards have these ids and vectors; a row's width is its number."""
    writer = StoreWriter(path, Manifest(dim=shards[0][1].shape[1], dtype=dtype, model="m"))
    writer.begin("input")
    number = 0
    for index, (ids, vectors) in enumerate(shards):
        rows = [Row(own_id, f"in/{own_id}", number + n, 480, "JPEG", 100) for n, own_id in enumerate(ids)]
        writer.commit(Shard(index, [], "fingerprint"), rows, vectors.astype(np.float32), [])
        number += len(ids)
    return writer


def three(path: Path, dtype: str = "float32") -> StoreWriter:
    rng = np.random.default_rng(3)
    counts = (70, 0, 75)  # more than a block of vectors, and borders that lie inside blocks
    return write(
        path, [([f"{s}-{n}" for n in range(c)], rng.standard_normal((c, DIM))) for s, c in enumerate(counts)], dtype
    )


def oracle(ids: list[str], vectors: np.ndarray, query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k best by their exact scores, then by id."""
    ranked = sorted((-score, own_id) for score, own_id in zip(exact_scores(vectors, query), ids, strict=True))
    return [(own_id, -negated) for negated, own_id in ranked[:k]]


def pairs(hits: list[clip.Hit]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


@pytest.mark.parametrize("engine", ["faiss", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hits_are_those_of_an_oracle(tmp_path: Path, dtype: str, engine: ScanEngine) -> None:
    three(tmp_path, dtype)
    store = Store(tmp_path)
    ids, vectors = store.table(["id"]).column("id").to_pylist(), store.vectors()
    index = clip.Index(tmp_path, engine=engine)
    assert len(index) == 145
    for seed in range(5):
        query = np.random.default_rng(seed).standard_normal(DIM)
        for k in (1, 7, 145, 1_000):
            assert pairs(index.search(vector=query, k=k)) == oracle(ids, vectors, query, k)
    (best,) = index.search(vector=1e-300 * vectors[3].astype(float), k=1)
    assert best == clip.Hit(ids[3], f"in/{ids[3]}", 1.0)


@settings(max_examples=25, deadline=None)
@example(seed=40936, count=171, kinds=4, k=2)  # rows v and 3 v, orthogonal to the query: cosines 0 and 3e-17 in float64
@given(seed=st.integers(0, 2**32), count=st.integers(1, 300), kinds=st.integers(1, 4), k=st.integers(1, 40))
def test_ties_by_the_hundred_go_by_their_ids(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, kinds: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(-3, 4, (kinds, DIM))
    pool[~pool.any(axis=1)] = 1
    vectors = pool[rng.integers(0, kinds, count)] * rng.choice([1, 2, 3], (count, 1))
    ids = [f"{n:03}é" for n in rng.permutation(count)]
    path = tmp_path_factory.mktemp("ties")
    write(path, [(ids[: count // 2], vectors[: count // 2]), (ids[count // 2 :], vectors[count // 2 :])])
    query = rng.integers(-3, 4, DIM).astype(float) + 0.5
    expected = oracle(ids, vectors, query, k)
    for engine in ("faiss", "numpy"):
        assert pairs(clip.Index(path, engine=engine).search(vector=query, k=k)) == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 200), k=st.integers(1, 60))
@pytest.mark.parametrize("kind", ["orthogonal", "nearly orthogonal", "opposite", "mixed"])
def test_cosines_near_0_are_ranked_as_in_exact_arithmetic(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, count: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    query = rng.integers(1, 9, DIM).astype(float)
    vectors = near_zero(kind, rng, query, count)
    ids = [f"{n:03}" for n in rng.permutation(count)]
    path = tmp_path_factory.mktemp("near-0")
    write(path, [(ids[: count // 3], vectors[: count // 3]), (ids[count // 3 :], vectors[count // 3 :])])
    expected = oracle(ids, vectors, query, k)
    for engine in ("faiss", "numpy"):
        index = clip.Index(path, engine=engine)
        hits = index.search(vector=query, k=k)
        assert pairs(hits) == expected
        assert "-0.0" not in {str(hit.score) for hit in hits}
        for hit in hits[::7]:  # a score as it is shown is a limit that its row passes
            assert index.search(vector=query, k=k, min_score=float(str(hit.score)))[-1].score == hit.score


def test_an_id_that_appears_twice_is_found_twice(tmp_path: Path) -> None:
    write(tmp_path, [(["a", "b"], np.eye(2)), (["a"], np.eye(2)[:1])])
    assert [hit.id for hit in clip.Index(tmp_path).search(vector=[1, 0], k=3)] == ["a", "a", "b"]


def test_the_index_is_made_once_and_again_when_parts_change(tmp_path: Path) -> None:
    writer, store, path = three(tmp_path), Store(tmp_path), tmp_path / "_index" / FILE
    assert check_index(store)[1]
    inode = path.stat().st_ino
    before = clip.Index(tmp_path)
    assert not check_index(store)[1]
    assert path.stat().st_ino == inode
    writer.commit(
        Shard(0, [], "fingerprint"), [Row("new", "in/new", 1, 1, "JPEG", 1)], np.ones((1, DIM), np.float32), []
    )
    after = clip.Index(tmp_path)
    assert path.stat().st_ino != inode
    assert after.search(vector=np.ones(DIM), k=1) == [clip.Hit("new", "in/new", 1.0)]
    assert (len(before), len(after)) == (145, 76)
    assert "new" not in {hit.id for hit in before.search(vector=np.ones(DIM), k=145)}  # as it was when it was opened


def test_an_index_of_another_version_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    monkeypatch.setattr(module, "VERSION", 1)
    inode = check_index(Store(tmp_path))[0] and (tmp_path / "_index" / FILE).stat().st_ino
    monkeypatch.undo()
    clip.Index(tmp_path)
    assert (tmp_path / "_index" / FILE).stat().st_ino != inode


def test_the_remains_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "_index").mkdir()
    for name in (FILE, "rows.index"):
        (tmp_path / "_index" / f".{name}.0123.tmp").write_bytes(b"half")
    clip.Index(tmp_path)
    assert sorted(os.listdir(tmp_path / "_index")) == [".exact.guard", ".rows.guard", FILE, "rows.index"]


def test_parts_that_change_while_they_are_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = three(tmp_path)
    written, changes = rows_file._write_sections, [2]

    def disturbed(*arguments: Any) -> bool:
        done = written(*arguments)
        if changes[0]:
            changes[0] -= 1
            row = Row(f"new{changes[0]}", "in/new", 1, 1, "JPEG", 1)
            writer.commit(Shard(0, [], "fingerprint"), [row], np.ones((1, DIM), np.float32), [])
        return done

    monkeypatch.setattr(rows_file, "_write_sections", disturbed)
    assert clip.Index(tmp_path).search(vector=np.ones(DIM), k=1)[0].id == "new0"
    changes[0] = 99
    writer.commit(Shard(0, [], "fingerprint"), [Row("x", "x", 1, 1, "JPEG", 1)], np.ones((1, DIM), np.float32), [])
    with pytest.raises(StoreBusyError, match=r"its parts change while they are read\. Wait for the job"):
        clip.Index(tmp_path)


def test_searching_while_parts_are_replaced_finds_the_rows_of_one_moment(tmp_path: Path) -> None:
    """All rows of a moment have one vector, so hits of two moments would differ in score."""

    def rows(of: int) -> list[Row]:
        return [Row(f"{of}-{n}", "in", 1, 1, "JPEG", 1) for n in range(3)]

    writer = write(tmp_path, [(["0-0", "0-1", "0-2"], np.eye(DIM)[:1].repeat(3, 0))])
    over = threading.Event()

    def update() -> None:
        turn = 0
        while not over.wait(0.02):
            turn += 1
            writer.commit(Shard(0, [], "fingerprint"), rows(turn), np.eye(DIM, dtype=np.float32)[[turn % DIM] * 3], [])

    job = threading.Thread(target=update)
    job.start()
    try:
        found = 0
        for _ in range(30):
            try:
                index = clip.Index(tmp_path)
            except StoreBusyError:
                continue
            found += 1
            best = index.search(vector=np.arange(1, DIM + 1), k=5)
            assert len(best) == 3
            assert len({hit.score for hit in best}) == len({hit.id.partition("-")[0] for hit in best}) == 1
    finally:
        over.set()
        job.join()
    assert found


def test_two_that_need_it_at_a_time_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    made: list[None] = []
    write_index = module._write
    monkeypatch.setattr(module, "_write", lambda *arguments: (made.append(None), write_index(*arguments)))
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(clip.Index(tmp_path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(made)) == ([145] * 4, 1)


def test_where_nothing_can_be_written_the_index_is_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    three(tmp_path)
    query = np.arange(1, DIM + 1)
    expected = clip.Index(tmp_path).search(vector=query)
    for name in (FILE, "rows.index"):
        os.unlink(tmp_path / "_index" / name)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    assert clip.Index(tmp_path).search(vector=query) == expected
    assert "the index is made in a temporary file" in caplog.text
    assert sorted(os.listdir(tmp_path / "_index")) == [".exact.guard", ".rows.guard"]
    with pytest.raises(StoreError, match="cannot be written"):
        check_index(Store(tmp_path))


def test_all_columns_but_vectors_are_kept(tmp_path: Path) -> None:
    three(tmp_path)
    for part in (tmp_path / "embeddings").iterdir():
        table = pq.read_table(part)
        write_part(part, table.append_column("caption", pa.array([f"a {n}" for n in range(len(table))], pa.string())))
    index = clip.Index(tmp_path)
    assert [hit.id for hit in index.search(vector=np.ones(DIM), where="caption = 'a 9'", k=9)] in (
        ["0-9", "2-9"],
        ["2-9", "0-9"],
    )
    found = {hit.id for hit in index.search(vector=np.ones(DIM), where="width < 70", k=145)}
    assert found == {f"0-{n}" for n in range(70)}
    assert index.search(vector=np.ones(DIM), where="width > 1000") == []


def test_parts_of_different_columns_are_refused(tmp_path: Path) -> None:
    three(tmp_path)
    part = tmp_path / "embeddings/part-00002.parquet"
    write_part(part, pq.read_table(part).rename_columns({"width": "breadth"}))
    with pytest.raises(StoreError, match=r"part-00002.parquet: has other columns than the manifest says \(width is"):
        clip.Index(tmp_path)


@pytest.mark.parametrize(("number", "norm"), [(0.0, "0.0"), (math.nan, "nan"), (math.inf, "inf")])
def test_a_vector_without_direction_is_named(tmp_path: Path, number: float, norm: str) -> None:
    three(tmp_path)
    part = tmp_path / "embeddings/part-00002.parquet"
    table = pq.read_table(part)
    rows = table.column("embedding").to_pylist()
    rows[4] = [number] * DIM
    place = table.schema.get_field_index("embedding")
    write_part(part, table.set_column(place, "embedding", pa.array(rows, table.schema.field(place).type)))
    with pytest.raises(StoreError, match=rf"part-00002.parquet: '2-4' has a vector of norm {norm}"):
        clip.Index(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    three(tmp_path)
    part = tmp_path / "embeddings/part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"embeddings/part-00002.parquet: cannot be read"):
        clip.Index(tmp_path)


def test_memory_is_let_go_of_and_read_again(tmp_path: Path) -> None:
    three(tmp_path)
    index = open_index(Store(tmp_path))
    query = np.eye(DIM)[0]
    assert index.find_nearest(query, 145) == index.find_nearest(query, 145)
    index.check()


def test_the_vectors_are_kept_once_beside_the_codes(tmp_path: Path) -> None:
    three(tmp_path)
    clip.Index(tmp_path)
    clip.Store(tmp_path).vectors()
    folder = tmp_path / "_index"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [FILE, "rows.index"]
    headers = [
        json.loads(data[data.rindex(b'{"kind"') : data.rindex(b"}") + 1])
        for data in ((folder / name).read_bytes() for name in (FILE, "rows.index"))
    ]
    assert [list(header["sections"]) for header in headers] == [["codes"], ["vectors", "rows"]]
    assert [(header["kind"], header["rows"], header["dim"]) for header in headers] == [
        ("exact", 145, DIM),
        ("rows", 145, DIM),
    ]
    assert headers[0]["stamp"] == headers[1]["stamp"]
    assert headers[0]["stamp"]["rows"] == 145
