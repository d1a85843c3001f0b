"""export(job): numpy, pyarrow, pandas, DuckDB, csv and safetensors read what the parts hold, in their order."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import checkpoints
from kit.in_process import Run
from kit.inputs import draw_photos
from kit.jobs import embed_job
from kit.programs import command
from safetensors import safe_open
from safetensors.numpy import load_file

import clip
import clip.store.export as exporting
from clip.cli import main
from clip.errors import InputError, StoreError, StoreMismatchError
from clip.jobs.export import ExportJob
from clip.jobs.options import ExportFormat
from clip.store.manifest import Manifest
from clip.store.parts import Parts
from clip.store.writer import StoreWriter

DIM = 5
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
ODD = ["a\nb.jpg", "a\r\nb.jpg", "a\rb.jpg", 'say "x", y.jpg', "ä😀\u2028.jpg", " lead.jpg", "x\\\\y.jpg", "#1;\t'.jpg"]
INFO: dict[str, Any] = {
    "model": "ViT-B/32",
    "weights_sha256": "ab" * 32,
    "weights_source": "/weights.pt",
    "preprocess": "p/1",
    "normalised": True,
}
LIMIT_S = 60.0


def numbers(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def part(vectors: np.ndarray, names: list[str], **more: pa.Array) -> pa.Table:
    """Rows as a run writes them, made with pyarrow alone."""
    kind = pa.from_numpy_dtype(vectors.dtype)
    columns: dict[str, Any] = {
        "id": pa.array(names, pa.string()),
        "path": pa.array([f"in/{name}" for name in names], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), kind), vectors.shape[1]),
        "width": pa.array([640 + n for n in range(len(names))], pa.int32()),
        "height": pa.array([480] * len(names), pa.int32()),
        "format": pa.array(["JPEG"] * len(names), pa.string()),
        "size_bytes": pa.array([2**40 + n for n in range(len(names))], pa.int64()),
    }
    return pa.table(columns | more)


def write_run(path: Path, tables: list[pa.Table], **changes: Any) -> Path:
    """An output that is over; the numbers of its parts have gaps."""
    kind = tables[0].schema.field("embedding").type if tables else pa.list_(pa.float32(), DIM)
    manifest = {
        **INFO,
        "dim": kind.list_size,
        "dtype": {"float": "float32", "halffloat": "float16"}[str(kind.value_type)],
    }
    (path / "embeddings").mkdir(parents=True)
    for n, table in enumerate(tables):
        table = table.replace_schema_metadata({b"clip.mark": b"fingerprint"})
        pq.write_table(table, path / f"embeddings/part-{2 * n:05}.parquet")
    counts = {"read": 0, "written": sum(map(len, tables)), "failed": 0}
    (path / "manifest.json").write_text(json.dumps(manifest | {"counts": counts} | changes))
    return path


def three_parts(dtype: str = "float32", scale: float = 1) -> tuple[list[pa.Table], np.ndarray, list[str]]:
    """Parts of 3, 0 and 5 rows, all their vectors and all their ids."""
    blocks = [(numbers(count, seed) * scale).astype(dtype) for seed, count in enumerate((3, 0, 5))]
    names = [ODD[:3], [], ODD[3:]]
    tables = [part(block, some) for block, some in zip(blocks, names, strict=True)]
    return tables, np.concatenate(blocks), ODD


def export(out: Path, target: Path, form: ExportFormat, **options: Any) -> clip.ExportReport:
    return exporting.export(ExportJob(output=out, target=target, format=form, **options))


def list_files(target: Path) -> list[str]:
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def summary(target: Path) -> dict[str, Any]:
    return json.loads((target / "export.json").read_text())


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


def assert_whole_rows(rows: list[dict[str, Any]], tables: list[pa.Table]) -> None:
    assert rows == [row for table in tables for row in table.drop_columns(["embedding"]).to_pylist()]


# npy


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_holds_all_vectors_and_a_row_for_each(tmp_path: Path, dtype: str) -> None:
    tables, vectors, names = three_parts(dtype)
    report = export(write_run(tmp_path / "out", tables), tmp_path / "to", "npy")
    assert_same_bits(np.load(tmp_path / "to/vectors.npy", allow_pickle=False), vectors)
    assert isinstance(np.load(tmp_path / "to/vectors.npy", mmap_mode="r"), np.memmap)
    rows = pq.read_table(tmp_path / "to/ids.parquet")
    assert rows.column("id").to_pylist() == names
    assert_whole_rows(rows.to_pylist(), tables)
    query = f"SELECT id, path FROM '{tmp_path}/to/ids.parquet'"
    assert duckdb.sql(query).fetchall() == [(name, f"in/{name}") for name in names]
    assert pq.read_metadata(tmp_path / "to/ids.parquet").metadata.keys() == {b"ARROW:schema"}
    assert summary(tmp_path / "to") == {"format": "npy", **INFO, "dtype": dtype, "dim": DIM, "rows": 8}
    assert report == clip.ExportReport(tmp_path / "to", ("ids.parquet", "vectors.npy", "export.json"), 8)
    assert list_files(tmp_path / "to") == sorted(report.files)


# clip-retrieval


def partitions(target: Path) -> list[tuple[Path, Path]]:
    """As its readers pair them: both folders sorted by name."""
    vectors, rows = (sorted((target / name).iterdir()) for name in ("img_emb", "metadata"))
    return list(zip(vectors, rows, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("raw", [False, True])
def test_clip_retrieval_has_a_pair_for_each_part_with_rows(tmp_path: Path, dtype: str, raw: bool) -> None:
    tables, vectors, names = three_parts(dtype, 30)
    report = export(write_run(tmp_path / "out", tables, normalised=not raw), tmp_path / "to", "clip-retrieval")
    files = [
        "img_emb/img_emb_0.npy",
        "img_emb/img_emb_1.npy",
        "metadata/metadata_0.parquet",
        "metadata/metadata_1.parquet",
    ]
    assert list_files(tmp_path / "to") == sorted([*files, "export.json"])
    assert sorted(report.files) == sorted([*files, "export.json"])
    pairs = [(np.load(a, allow_pickle=False), pd.read_parquet(b)) for a, b in partitions(tmp_path / "to")]
    assert [(len(block), len(rows)) for block, rows in pairs] == [(3, 3), (5, 5)]
    exported, rows = np.concatenate([block for block, _ in pairs]), pd.concat([rows for _, rows in pairs])
    wide = vectors.astype(np.float64)
    expected = wide / np.sqrt((wide**2).sum(axis=1, keepdims=True)) if raw else vectors
    assert_same_bits(exported, expected.astype(np.float16))
    assert list(rows.columns) == ["id", "image_path", "width", "height", "format", "size_bytes"]
    assert rows.image_path.tolist() == [f"in/{name}" for name in names]
    assert rows.id.tolist() == names
    metadata_keys = [pq.read_metadata(path).metadata.keys() for _, path in partitions(tmp_path / "to")]
    assert metadata_keys == [{b"ARROW:schema"}] * 2
    info = summary(tmp_path / "to")
    assert (info["normalised"], info["dtype"], info["rows"]) == (True, "float16", 8)


def test_its_reader_finds_shape_and_type_in_the_first_line(tmp_path: Path) -> None:
    """embedding-reader takes them from the text up to the first line feed, where the numbers must begin."""
    export(write_run(tmp_path / "out", three_parts()[0]), tmp_path / "to", "clip-retrieval")
    content = (tmp_path / "to/img_emb/img_emb_1.npy").read_bytes()
    line, _, rest = content[:300].partition(b"\n")
    assert b"'descr': '<f2'" in line
    assert re.search(rb"'shape': \(5, 5\)", line)
    assert len(content) == len(line) + 1 + 5 * DIM * 2
    assert rest


@pytest.mark.parametrize(("count", "digits"), [(1, 1), (9, 1), (10, 2), (11, 2), (100, 3)])
def test_numbers_of_partitions_have_as_many_digits_as_their_count(tmp_path: Path, count: int, digits: int) -> None:
    tables = [part(numbers(1, seed), [f"{seed}.jpg"]) for seed in range(count)]
    export(write_run(tmp_path / "out", tables), tmp_path / "to", "clip-retrieval")
    pairs = partitions(tmp_path / "to")
    for folder, name in ((0, "img_emb_{}.npy"), (1, "metadata_{}.parquet")):
        assert [pair[folder].name for pair in pairs] == [name.format(f"{n:0{digits}}") for n in range(count)]
    ids = [name for _, rows in pairs for name in pq.read_table(rows).column("id").to_pylist()]
    assert ids == [f"{seed}.jpg" for seed in range(count)]


def test_a_vector_of_zeros_stays_one(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", [part(np.zeros((2, DIM), np.float32), ["a", "b"])], normalised=False)
    export(out, tmp_path / "to", "clip-retrieval")
    assert not np.load(tmp_path / "to/img_emb/img_emb_0.npy").any()


# csv


def read_csv(target: Path) -> list[list[str]]:
    with (target / "vectors.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_csv_gives_each_number_back_and_each_id(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "CSV_ROWS", 2)
    tables, vectors, names = three_parts(dtype)
    report = export(write_run(tmp_path / "out", tables), tmp_path / "to", "csv")
    head, *rows = read_csv(tmp_path / "to")
    assert head == ["id", "path", "width", "height", "format", "size_bytes", *(f"e{n}" for n in range(DIM))]
    assert [row[:6] for row in rows] == [
        [str(value) for value in row.values()]
        for table in tables
        for row in table.drop_columns(["embedding"]).to_pylist()
    ]
    assert_same_bits(np.array([[float(x) for x in row[6:]] for row in rows], dtype), vectors)
    kind = np.dtype(dtype).type
    assert all(len(x) <= len(str(kind(x))) for row in rows for x in row[6:])  # no more digits than are needed
    read = duckdb.sql(
        f"SELECT id, e0::DOUBLE, e4::DOUBLE FROM read_csv('{tmp_path}/to/vectors.csv', header=true)"
    ).fetchall()
    assert [row[0] for row in read] == names
    assert_same_bits(np.array([row[1:] for row in read], dtype), vectors[:, [0, 4]])
    assert report.files == ("vectors.csv", "export.json")


def test_lines_of_csv_end_as_the_standard_says(tmp_path: Path) -> None:
    export(write_run(tmp_path / "out", [part(numbers(2, 0), ["a", 'b"'])]), tmp_path / "to", "csv")
    lines = (tmp_path / "to/vectors.csv").read_bytes().split(b"\r\n")
    assert len(lines) == 4
    assert lines[2].startswith(b'"b""","in/b""",641,')
    assert lines[3] == b""


def test_numbers_that_are_not_finite_are_written_in_csv(tmp_path: Path) -> None:
    odd = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45]], np.float32)
    export(write_run(tmp_path / "out", [part(odd, ["a"])]), tmp_path / "to", "csv")
    row = np.array([float(x) for x in read_csv(tmp_path / "to")[1][6:]], np.float32)
    assert np.array_equal(row[None], odd, equal_nan=True)
    assert np.signbit(row[3])


# safetensors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("model", ["ViT-B/32", 'weights/ä"\n.pt'])
def test_safetensors_reads_what_was_streamed(tmp_path: Path, dtype: str, model: str) -> None:
    tables, vectors, _ = three_parts(dtype)
    report = export(write_run(tmp_path / "out", tables, model=model), tmp_path / "to", "safetensors")
    tensors = load_file(tmp_path / "to/vectors.safetensors")
    assert list(tensors) == ["embedding"]
    assert_same_bits(tensors["embedding"], vectors)
    with safe_open(tmp_path / "to/vectors.safetensors", "np") as file:
        info = {"model": model, "normalised": "true", "dtype": dtype, "dim": str(DIM)}
        assert file.metadata() == {**INFO, **info}
        assert_same_bits(file.get_slice("embedding")[2:4], vectors[2:4])
    content = (tmp_path / "to/vectors.safetensors").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0  # so that readers can map the numbers
    assert_whole_rows(pq.read_table(tmp_path / "to/ids.parquet").to_pylist(), tables)
    assert report.files == ("ids.parquet", "vectors.safetensors", "export.json")


def test_pgvector_has_vectors_in_brackets_and_the_commands_that_load_them(tmp_path: Path) -> None:
    tables, vectors, names = three_parts()
    export(write_run(tmp_path / "out", tables), tmp_path / "to", "pgvector")
    with (tmp_path / "to/pgvector.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == names
    assert_same_bits(np.array([json.loads(row["embedding"]) for row in rows], np.float32), vectors)
    load = (tmp_path / "to/pgvector.sql").read_text(encoding="utf-8").splitlines()
    assert load[0] == "CREATE EXTENSION IF NOT EXISTS vector;"
    assert load[1].startswith('CREATE TABLE clip ("id" text, "path" text, "width" bigint,')
    assert load[1].endswith(f'"embedding" vector({DIM}));')
    assert load[2] == "\\copy clip FROM 'pgvector.csv' WITH (FORMAT csv, HEADER)"


def test_untrained_weights_have_no_hash_in_safetensors(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", three_parts()[0], weights_sha256=None, weights_source="untrained:0")
    export(out, tmp_path / "to", "safetensors")
    with safe_open(tmp_path / "to/vectors.safetensors", "np") as file:
        assert (file.metadata()["weights_sha256"], file.metadata()["weights_source"]) == ("null", "untrained:0")


# All formats


@pytest.mark.parametrize("tables", [[], [part(numbers(0, 0), [])]], ids=["no part", "a part without rows"])
def test_a_run_without_rows_is_exported_too(tmp_path: Path, tables: list[pa.Table]) -> None:
    out = write_run(tmp_path / "out", tables)
    assert [export(out, tmp_path / form, form).rows for form in FORMATS] == [0] * 4
    assert np.load(tmp_path / "npy/vectors.npy").shape == (0, DIM)
    assert pq.read_table(tmp_path / "npy/ids.parquet").num_rows == 0
    assert load_file(tmp_path / "safetensors/vectors.safetensors")["embedding"].shape == (0, DIM)
    assert len(read_csv(tmp_path / "csv")) == 1
    assert list_files(tmp_path / "clip-retrieval") == ["export.json"]


def test_part_100000_comes_after_part_99999(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", [part(numbers(1, seed), [str(seed)]) for seed in range(2)])
    (out / "embeddings/part-00002.parquet").rename(out / "embeddings/part-100000.parquet")
    (out / "embeddings/part-00000.parquet").rename(out / "embeddings/part-99999.parquet")
    export(out, tmp_path / "to", "npy")
    assert pq.read_table(tmp_path / "to/ids.parquet").column("id").to_pylist() == ["0", "1"]


COPIED = {
    "caption": pa.array(["one, two", None, 'th"ree'], pa.string()),
    "score": pa.array([0.1, None, -1e300], pa.float64()),
    "ok": pa.array([True, False, None], pa.bool_()),
    "big": pa.array(["x", "y", "z"], pa.large_string()),
    "count": pa.array([2**63 + 1, 2, 3], pa.uint64()),
}


def test_copied_columns_are_exported(tmp_path: Path) -> None:
    tables = [part(numbers(3, seed), ["a", "b", "c"], **COPIED) for seed in range(2)]
    out = write_run(tmp_path / "out", tables)
    for form in FORMATS:
        export(out, tmp_path / form, form)
    for rows in ("npy/ids.parquet", "safetensors/ids.parquet"):
        assert_whole_rows(pq.read_table(tmp_path / rows).to_pylist(), tables)
    metadata = pq.read_table(tmp_path / "clip-retrieval/metadata/metadata_1.parquet")
    assert metadata.rename_columns([name.replace("image_", "") for name in metadata.column_names]) == tables[
        1
    ].drop_columns(["embedding"])
    head, *lines = read_csv(tmp_path / "csv")
    assert head[6:12] == [*COPIED, "e0"]
    assert [line[6:11] for line in lines[:3]] == [
        ["one, two", "0.1", "true", "x", "9223372036854775809"],
        ["", "", "false", "y", "2"],
        ['th"ree', "-1e+300", "", "z", "3"],
    ]


def test_a_column_that_has_no_plain_type_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tags = pa.array([["x"], []], pa.list_(pa.string()))
    export(write_run(tmp_path / "out", [part(numbers(2, 0), ["a", "b"], tags=tags)]), tmp_path / "to", "npy")
    assert "tags" not in pq.read_schema(tmp_path / "to/ids.parquet").names
    assert "columns ['tags'] are not exported" in caplog.text


@pytest.mark.parametrize(("form", "name"), [("csv", "e4"), ("clip-retrieval", "image_path")])
def test_a_column_whose_name_the_format_uses_is_refused(tmp_path: Path, form: ExportFormat, name: str) -> None:
    out = write_run(tmp_path / "out", [part(numbers(1, 0), ["a"], **{name: pa.array(["x"])})])
    with pytest.raises(
        StoreError,
        match=f"has a column '{name}', expected no column with a name that {form} itself uses. Choose another format",
    ):
        export(out, tmp_path / "to", form)
    assert not (tmp_path / "to").exists()
    assert export(out, tmp_path / "to", "npy").rows == 1


@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_number_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat
) -> None:
    rows, dim = 1024, 64
    size_bytes = rows * dim * 4
    allocated: list[int] = []

    def watched(*arguments: Any) -> pa.Table:
        allocated.append(pa.total_allocated_bytes())  # with what is held of earlier parts
        return read_part(*arguments)

    read_part = Parts.read
    monkeypatch.setattr(Parts, "read", watched)
    peaks: list[int] = []
    held: list[int] = []
    for count in (4, 4, 24):  # the first run to have everything imported
        out = tmp_path / f"{len(peaks)}"
        write_run(out, [part(numbers(rows, seed, dim), [f"{n}" for n in range(rows)]) for seed in range(count)])
        allocated.clear()
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        export(out, tmp_path / f"to-{len(peaks)}", form)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(allocated) == count
        held.append(max(allocated) - before)
    assert peaks[2] - peaks[1] < 4 * size_bytes  # of 20
    assert held[2] - held[1] < 6 * size_bytes  # of 20; Arrow's threads may free a part some moments later


# What is refused


def assert_refused(error: type[Exception], words: str, out: Path, target: Path, **options: Any) -> None:
    before = list_files(target) if target.is_dir() else target.exists()
    for form in FORMATS:
        with pytest.raises(error, match=words) as raised:
            export(out, target, form, **options)
        assert type(raised.value) is error
        assert (list_files(target) if target.is_dir() else target.exists()) == before


def test_a_run_that_is_not_over_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "out", Manifest(**INFO, dim=DIM))
    writer.begin("input")
    words = "the run is not over, expected a finished one. Run the job again"
    assert_refused(StoreError, words, tmp_path / "out", tmp_path / "to")
    writer.finish({"read": 0, "written": 0, "failed": 0})
    assert export(tmp_path / "out", tmp_path / "to", "npy").rows == 0


def test_a_folder_that_holds_no_output_is_refused(tmp_path: Path) -> None:
    assert_refused(StoreError, "expected the output of clip embed", tmp_path / "missing", tmp_path / "to")


def test_parts_that_are_missing_are_noticed(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    (out / "embeddings/part-00000.parquet").unlink()
    assert_refused(
        StoreError,
        "parts hold 5 rows, expected 8 as the manifest says. Run clip verify .* to find the damage",
        out,
        tmp_path / "to",
    )


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "to").touch()
    out = write_run(tmp_path / "out", three_parts()[0])
    assert_refused(StoreMismatchError, "to: is a file, expected a folder", out, tmp_path / "to", overwrite=True)


@pytest.mark.parametrize("below", ["", "embeddings", "npy/deep"])
def test_a_target_inside_the_output_is_refused(tmp_path: Path, below: str) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    (tmp_path / "link").symlink_to(out)
    for target in (out / below, tmp_path / "link" / below, tmp_path / "other/.." / "out" / below):
        assert_refused(
            InputError, "is inside .*, expected a separate folder. Choose another target", out, target, overwrite=True
        )


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "vectors.npy", "img_emb/img_emb_0.npy", "export.json"])
def test_files_of_others_are_never_removed(tmp_path: Path, name: str) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    (tmp_path / "to" / name).parent.mkdir(parents=True)
    (tmp_path / "to" / name).write_text("{}")
    words = "and no export.json of ours, expected an empty folder"
    for overwrite in (False, True):
        assert_refused(StoreMismatchError, words, out, tmp_path / "to", overwrite=overwrite)
    assert (tmp_path / "to" / name).read_text() == "{}"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match=r"format: found 'xml', expected one of npy, "):
        ExportJob(output="out", target="to", format="xml")  # type: ignore[arg-type]


@pytest.mark.parametrize("first", FORMATS)
def test_an_earlier_export_goes_when_it_may_be_overwritten(tmp_path: Path, first: ExportFormat) -> None:
    many = write_run(tmp_path / "many", [part(numbers(1, seed), [str(seed)]) for seed in range(12)])
    out = write_run(tmp_path / "out", three_parts()[0])
    for form in FORMATS:
        target = tmp_path / f"to-{form}"
        export(many, target, first)
        (target / "notes.txt").touch()
        with pytest.raises(StoreMismatchError, match=r"holds an export, expected .* Pass overwrite=True to replace it"):
            export(out, target, form)
        assert summary(target)["rows"] == 12
        report = export(out, target, form, overwrite=True)
        assert list_files(target) == sorted([*report.files, "notes.txt"])
        assert all(path.is_file() or any(path.iterdir()) for path in target.iterdir())
        fresh = export(out, tmp_path / f"fresh-{form}", form)
        assert report.files == fresh.files
        for name in fresh.files:
            assert (target / name).read_bytes() == (fresh.target / name).read_bytes()


# What goes wrong on the way


def broken_reading(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    original, calls = Parts.read, [0]

    def read(*arguments: Any) -> pa.Table:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return original(*arguments)

    monkeypatch.setattr(Parts, "read", read)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_is_left_of_an_export_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat, earlier: bool
) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    if earlier:
        export(out, tmp_path / "to", "clip-retrieval")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        broken_reading(patch, 2, KeyboardInterrupt())
        export(out, tmp_path / "to", form, overwrite=earlier)
    assert list((tmp_path / "to").iterdir()) == []
    assert export(out, tmp_path / "to", form).rows == 8


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_part_is_named_and_nothing_is_left(tmp_path: Path, form: ExportFormat) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    path = out / "embeddings/part-00004.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(200) + content[204:])  # its footer stays, so it counts
    with pytest.raises(StoreError, match=r"embeddings/part-00004.parquet: cannot be read"):
        export(out, tmp_path / "to", form)
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.append_column("more", pa.array(["x"] * 5)),
        lambda table: table.drop_columns(["width"]),
        lambda table: table.set_column(3, "width", pa.array([1.5] * 5)),
        lambda table: table.set_column(2, "embedding", part(numbers(5, 0, DIM + 1), ["a"] * 5).column("embedding")),
    ],
    ids=["one more", "one less", "another type", "another width"],
)
def test_parts_of_other_columns_are_not_mixed(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    tables = three_parts()[0]
    out = write_run(tmp_path / "out", [*tables[:2], change(tables[2])], dim=DIM)
    for form in FORMATS:
        with pytest.raises(
            StoreError, match=r"part-00004.parquet: (its columns are \[|has other columns than the manifest says)"
        ):
            export(out, tmp_path / "to", form)


def test_all_parts_of_other_columns_than_the_manifest_says_are_noticed(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", three_parts()[0], dim=DIM - 1)
    with pytest.raises(
        StoreError, match=r"part-00000.parquet: has other columns than the manifest says \(embedding is"
    ):
        export(out, tmp_path / "to", "npy")


@pytest.mark.parametrize("form", FORMATS)
def test_a_job_that_begins_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat
) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    original = Parts.read

    def read(*arguments: Any) -> pa.Table:
        manifest = json.loads((out / "manifest.json").read_text())
        (out / "manifest.json").write_text(json.dumps(manifest | {"counts": None}))
        return original(*arguments)

    monkeypatch.setattr(Parts, "read", read)
    with pytest.raises(StoreError, match=r"changed while it was read, expected no job on it\. Export it again"):
        export(out, tmp_path / "to", form)
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_fails_the_export_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat, at: int
) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    original, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 2 * at - 1:  # every other is a folder's
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"to: cannot be written \(No space left on device\)"):
        export(out, tmp_path / "to", form)
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_after_a_kill_no_file_is_half_and_the_next_export_makes_room(tmp_path: Path, form: ExportFormat) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    killed = command("die_in_export", out, tmp_path / "to", form)
    assert subprocess.run(killed, check=False, timeout=LIMIT_S).returncode == 9
    assert summary(tmp_path / "to")["rows"] is None
    left = [name for name in list_files(tmp_path / "to") if not Path(name).name.startswith(".")]
    whole = ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"] if form == "clip-retrieval" else []
    assert left == ["export.json", *whole]
    with pytest.raises(StoreMismatchError, match="Pass overwrite=True to replace it"):
        export(out, tmp_path / "to", form)
    report = export(out, tmp_path / "to", form, overwrite=True)
    assert list_files(tmp_path / "to") == sorted(report.files)


# A run of clip embed, and the command


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What clip embed writes of seven images and one that is none: raw float16, with hashes, in parts of three."""
    return draw_photos(tmp_path_factory.mktemp("photos"), [f"{n}\n.png" for n in range(7)], broken=["3.png"])


@pytest.fixture(scope="module")
def embedded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    weights = str(checkpoints.write(folder, texts=False))
    job = embed_job(
        source=photos, output=folder / "out", model=weights, normalize=False, dtype="float16", hashes=True, shard_size=3
    )
    assert clip.embed(job).failed == 1
    return folder / "out"


def test_what_clip_embed_wrote_is_exported(embedded: Path, tmp_path: Path) -> None:
    tables = [pq.read_table(path) for path in sorted((embedded / "embeddings").iterdir())]
    vectors = np.array([row for table in tables for row in table.column("embedding").to_pylist()], np.float16)
    assert len(vectors) == 7
    for form in FORMATS:
        assert export(embedded, tmp_path / form, form).rows == 7
    assert_same_bits(np.load(tmp_path / "npy/vectors.npy"), vectors)
    assert_same_bits(load_file(tmp_path / "safetensors/vectors.safetensors")["embedding"], vectors)
    lines = read_csv(tmp_path / "csv")[1:]
    assert_same_bits(np.array([[float(x) for x in line[8:]] for line in lines], np.float16), vectors)
    base = Path(json.loads((embedded / "manifest.json").read_text())["base"])
    assert [line[:8] for line in lines] == [
        ["" if value is None else str(value) for value in (row | {"path": base / row["path"]}).values()]
        for table in tables
        for row in table.drop_columns(["embedding"]).to_pylist()
    ]
    exported = np.concatenate([np.load(path) for path, _ in partitions(tmp_path / "clip-retrieval")])
    assert np.abs(np.linalg.norm(exported.astype(np.float64), axis=1) - 1).max() < 1e-3
    manifest = json.loads((embedded / "manifest.json").read_text())
    info = summary(tmp_path / "npy")
    assert (info.pop("format"), info.pop("rows")) == ("npy", 7)
    assert info == {name: manifest[name] for name in (*INFO, "dtype", "dim")}


def test_the_command_exports_and_says_so(run: Run, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    assert run("export", out, tmp_path / "to", "--format", "npy") == (
        0,
        "",
        f"exported 8 rows as npy; 3 files in {tmp_path}/to\n",
    )
    code, said, error = run("export", out, tmp_path / "to", "--format", "csv")
    assert (code, said) == (2, "")
    assert error == (
        f"clip: {tmp_path}/to: holds an export, expected an empty folder or nothing. Pass --overwrite to replace it.\n"
    )
    code, said, error = run("export", out, tmp_path / "to", "--format", "csv", "--overwrite", "--json")
    info = {"target": str(tmp_path / "to"), "files": ["vectors.csv", "export.json"], "rows": 8}
    assert (code, json.loads(said), json.loads(error)) == (0, info, info)
    shutil.rmtree(out / "embeddings")
    code, said, error = run("export", out, tmp_path / "to", "--format", "csv", "--overwrite")
    assert (code, said, error.count("\n")) == (1, "", 1)
    assert list_files(tmp_path / "to") == ["export.json", "vectors.csv"]  # nothing had begun


@pytest.mark.parametrize(
    ("flags", "words"),
    [([], "Missing option '--format'"), (["--format", "xml"], "'xml' is not one of 'npy', 'clip-retrieval', 'csv'")],
)
def test_the_command_refuses_what_makes_no_sense(run: Run, tmp_path: Path, flags: list[str], words: str) -> None:
    code, _, error = run("export", tmp_path / "out", tmp_path / "to", *flags)
    assert (code, words in error) == (2, True)


def test_each_field_of_the_job_has_an_argument() -> None:
    fields = {field.name for field in dataclasses.fields(ExportJob)}
    assert {parameter.name for parameter in main.cli.commands["export"].params} == fields | {"as_json"}


def test_an_export_needs_no_torch(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", three_parts()[0])
    npy = command("run_without_torch", "export", out, tmp_path / "to", "--format", "npy")
    done = subprocess.run(npy, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr.startswith("exported 8 rows")) == (0, True), done.stderr
