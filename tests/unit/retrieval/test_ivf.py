"""The IVF index: its hits have exact scores, its recall is what was measured, updates and damage change no hit."""

import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import lopsided
from kit.in_process import Run

import clip
from clip.errors import InputError, StoreError
from clip.jobs.index import Codes
from clip.records import Row, Shard
from clip.retrieval import indexing, ivf_build, ivf_file
from clip.retrieval.ivf_file import IvfIndex
from clip.retrieval.recall import find_truth, read_text_queries
from clip.store.manifest import Manifest
from clip.store.reader import Store
from clip.store.writer import StoreWriter

ROWS, PART_ROWS = 3_000, 1_000


def name_rows(shard: int, count: int = PART_ROWS) -> list[Row]:
    return [Row(f"{shard}-{n:04}", f"in/{shard}-{n}", n, 480, "JPEG", 9) for n in range(count)]


def write(out: Path, count: int = ROWS, seed: int = 0) -> StoreWriter:
    """An output of drawn photos, in parts of a thousand; a row's width is its place in its part."""
    writer = StoreWriter(out, Manifest(dim=lopsided.DIM, model="none"))
    writer.begin("input")
    rng = np.random.default_rng(seed)
    for shard in range(-(-count // PART_ROWS)):
        rows = name_rows(shard, min(PART_ROWS, count - shard * PART_ROWS))
        writer.commit(Shard(shard, [], "fingerprint"), rows, lopsided.draw("photo", len(rows), rng), [])
    return writer


def index(out: Path, **options: Any) -> clip.IndexReport:
    return clip.index(clip.IndexJob(output=out, **{"type": "ivf", **options}))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ivf") / "out"
    write(out)
    index(out)
    return out


@pytest.mark.parametrize("codes", ["sq8", "rabitq4", "fp16"])
def test_scores_are_exact_and_the_recall_is_what_was_measured(tmp_path: Path, codes: Codes) -> None:
    write(tmp_path)
    report = index(tmp_path, codes=codes, recall=0.95)
    assert (report.type, report.codes, report.rows, report.made, report.advice) == ("ivf", codes, ROWS, True, "")
    rows, texts = report.recall
    assert (rows.queries, rows.count, texts.queries, texts.count) == ("rows", 200, "texts", 0)
    assert rows.recall >= 0.95
    assert rows.lists <= report.lists == 54
    found, exact = clip.Index(tmp_path), clip.Index(tmp_path, exact=True)
    rng = np.random.default_rng(1)
    shares: list[float] = []
    for query in lopsided.draw("photo", 100, rng):
        hits, best = found.search(vector=query), exact.search(vector=query)
        scores = {hit.id: hit.score for hit in exact.search(vector=query, k=ROWS)}
        assert all(hit.score == scores[hit.id] for hit in hits)
        assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.id))
        shares.append(len({hit.id for hit in hits} & {hit.id for hit in best}) / 10)
    assert np.mean(shares) > 0.9  # of other queries than those that were measured


def test_the_truth_is_that_of_an_exact_search(out: Path) -> None:
    rows = Store(out).find_rows()
    assert rows is not None
    exact = clip.Index(out, exact=True)
    texts = lopsided.draw("text", 5, np.random.default_rng(3)).astype(np.float64)
    queries = [(query / np.linalg.norm(query), -1) for query in texts]
    queries += [(exact.read_vector(17), 17)]
    ids = exact.rows.column("id").to_pylist()
    for (query, own), truth in zip(queries, find_truth(rows, queries, lambda *_: None), strict=True):
        hits = [hit for hit in exact.search(vector=query, k=11) if own < 0 or hit.id != ids[own]][:10]
        assert {ids[place] for place in truth.places.tolist()} == {hit.id for hit in hits}
        assert truth.lowest == hits[-1].score


def test_as_many_hits_come_as_are_asked_for_and_all_rows_are_found(out: Path) -> None:
    found, exact = clip.Index(out), clip.Index(out, exact=True)
    query = lopsided.draw("text", 1, np.random.default_rng(4))[0]
    for k in (1, 700, ROWS - 1):
        assert len(found.search(vector=query, k=k)) == k
    assert found.search(vector=query, k=2 * ROWS) == exact.search(vector=query, k=2 * ROWS)


@pytest.mark.parametrize("condition", ["width < 3", "width % 2 = 0", "width > 5000"])
def test_a_condition_leaves_the_rows_that_meet_it(out: Path, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    monkeypatch.setattr(ivf_file, "EXACT_ROWS", 100)
    found, exact = clip.Index(out), clip.Index(out, exact=True)
    query = lopsided.draw("photo", 1, np.random.default_rng(5))[0]
    hits, expected = (some.search(vector=query, where=condition, k=10) for some in (found, exact))
    assert len(hits) == len(expected)
    assert len({hit.id for hit in hits} & {hit.id for hit in expected}) >= 0.9 * len(expected)
    assert {hit.id for hit in hits} <= {hit.id for hit in exact.search(vector=query, where=condition, k=ROWS)}


def test_an_update_keeps_the_lists_and_finds_what_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = write(tmp_path)
    before = index(tmp_path)
    rng = np.random.default_rng(6)
    writer.commit(Shard(1, [], "other"), name_rows(7, 300), lopsided.draw("photo", 300, rng), [])
    writer.commit(Shard(3, [], "new"), name_rows(8, 500), lopsided.draw("photo", 500, rng), [])
    monkeypatch.setattr(ivf_build, "_cluster", lambda *_: pytest.fail("the lists are made anew"))
    messages: list[str] = []
    found = clip.Index(tmp_path, tell=messages.append)
    assert messages == [f"{tmp_path}/_index/ivf.index: being brought up to date with the present parts"]
    report = index(tmp_path)
    assert (report.rows, report.made, report.lists) == (2_800, False, before.lists)
    exact = clip.Index(tmp_path, exact=True)
    assert found.search(vector=np.ones(512), k=2_800) == exact.search(vector=np.ones(512), k=2_800)
    lists = found._index
    assert isinstance(lists, IvfIndex)
    rows = np.concatenate([lists.read_list(number)[1] for number in range(before.lists)])
    assert sorted(rows.tolist()) == list(range(2_800))
    near = [
        len({h.id for h in found.search(vector=q)} & {h.id for h in exact.search(vector=q)})
        for q in lopsided.draw("photo", 50, rng)
    ]
    assert np.mean(near) > 9.5


@pytest.mark.parametrize(
    ("recall", "share", "words"),
    [
        (0.99, 0.19, ""),
        (0.985, 0.19, "The recall is 0.9850, and 0.99 was asked for. Run clip index with --type ivf --rebuild."),
        (0.99, 0.21, "A search reads 2.1 times as much as when the lists were made. Run clip index with "),
    ],
)
def test_what_updates_made_worse_is_said(recall: float, share: float, words: str) -> None:
    measured = {"rows": {"recall": 0.995, "share": share, "count": 200}, "texts": {"recall": recall, "count": 200}}
    header = {"options": {"recall": 0.99}, "measured": measured, "first_share": 0.1}
    assert indexing._advise(header).startswith(words)
    assert bool(indexing._advise(header)) == bool(words)


def test_lists_can_be_made_anew(tmp_path: Path) -> None:
    write(tmp_path, 500)
    index(tmp_path)
    assert not index(tmp_path).made
    assert index(tmp_path, rebuild=True).made


def test_the_type_stays_until_another_is_named(tmp_path: Path) -> None:
    write(tmp_path, 500)
    folder = tmp_path / "_index"
    assert clip.index(clip.IndexJob(output=tmp_path)).type == "exact"
    assert index(tmp_path, codes="fp16", recall=0.9).made
    assert sorted(name for name in os.listdir(folder) if not name.startswith(".")) == ["ivf.index", "rows.index"]
    again = clip.index(clip.IndexJob(output=tmp_path))
    assert (again.type, again.codes, again.made) == ("ivf", "fp16", False)
    assert index(tmp_path).made  # other codes
    assert clip.index(clip.IndexJob(output=tmp_path, type="exact")).type == "exact"
    assert sorted(name for name in os.listdir(folder) if not name.startswith(".")) == ["exact.index", "rows.index"]
    assert [one.where for one in clip.verify(clip.VerifyJob(output=tmp_path)).problems] == ["_plan"]  # it has none


def test_the_command_says_what_was_measured_and_a_search_explains_itself(run: Run, out: Path, tmp_path: Path) -> None:
    said = run("index", out)[2]
    assert f"{out}/_index/ivf.index: 3,000 rows, " in said
    assert re.search(r"recall@10 of queries like the rows (0\.99|1\.00)\d\d by 200 of them: [\d,]+ of 54 lists", said)
    assert "recall@10 of text queries was not measured, as the model is not on this machine" in said
    vector = tmp_path / "v.npy"
    np.save(vector, np.ones(512))
    explained = run("search", out, "--vector", vector, "-n", 1, "--explain")[2]
    assert explained.splitlines() == said.splitlines()[1:]
    assert run("search", out, "--vector", vector, "-n", 1)[2] == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recall": 1.0}, "`recall`: found 1.0, expected at least 0.5"),
        ({"memory": 1}, "`memory`: found 1 bytes"),
        ({"codes": "pq"}, "`codes`: found 'pq'"),
        ({"type": "hnsw"}, "`type`: found 'hnsw', expected one of exact, ivf"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("`", "`?")):
        clip.IndexJob(output="out", **options)


def test_there_are_two_hundred_text_queries() -> None:
    texts = read_text_queries()
    assert len(set(texts)) == 200
    assert all(text.strip() == text and text for text in texts)


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_few_rows_are_found_too(tmp_path: Path, count: int) -> None:
    write(tmp_path, count)
    assert index(tmp_path).rows == count
    assert len(clip.Index(tmp_path).search(vector=np.ones(512))) == min(10, count)


def test_equal_rows_by_the_hundred_do_not_hide_each_other(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, Manifest(dim=lopsided.DIM, model="none"))
    writer.begin("input")
    few = lopsided.draw("photo", 3, np.random.default_rng(8))
    writer.commit(Shard(0, [], "m"), name_rows(0, 600), few[np.arange(600) % 3], [])
    assert index(tmp_path).recall[0].recall >= 0.99
    hits = clip.Index(tmp_path).search(vector=few[1], k=5)
    assert {hit.score for hit in hits} == {1.0}


def test_no_more_rows_are_held_than_the_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("clip.jobs.index.MIN_MEMORY", 1)
    sizes: list[int] = []
    written = ivf_build._write_chunk
    monkeypatch.setattr(
        ivf_build, "_write_chunk", lambda path, lists, *rest: (sizes.append(len(lists)), written(path, lists, *rest))
    )
    report = index(tmp_path, memory=4 * 700 * (128 + 16))
    assert sizes == [700] * 4 + [200]
    assert sorted(itertools.chain(*_read_lists(tmp_path))) == list(range(ROWS))
    assert report.lists < 10  # as the sample is small too


def _read_lists(out: Path) -> list[list[int]]:
    found = clip.Index(out)._index
    assert isinstance(found, IvfIndex)
    return [found.read_list(number)[1].tolist() for number in range(len(found.centroids))]


def test_a_list_that_names_rows_that_are_not_there_is_damage(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = clip.Index(out)._index
    assert isinstance(found, IvfIndex)
    monkeypatch.setattr(found, "count", 10)
    with pytest.raises(StoreError, match="it names a row that is not there"):
        found.find_lists(np.arange(3))
