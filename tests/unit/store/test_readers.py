"""Every form of output is read by every reader that the documents name, with the numbers that were written."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
from kit import ROOT
from kit.altered import write_output
from safetensors import safe_open
from safetensors.numpy import load_file

import clip
from clip.jobs.export import ExportJob
from clip.store.export import export

Rows = list[dict[str, Any]]


def by_duckdb(*paths: Path) -> Rows:
    relation = duckdb.sql(f"SELECT * FROM read_parquet({list(map(str, paths))})")
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


READERS: dict[str, Callable[..., Rows]] = {
    "duckdb": by_duckdb,
    "pandas": lambda *paths: [row for path in paths for row in pd.read_parquet(path).to_dict("records")],
    "polars": lambda *paths: polars.read_parquet(list(paths)).to_dicts(),
    "pyarrow": lambda *paths: [row for path in paths for row in pq.read_table(path).to_pylist()],
}
CSV_READERS: dict[str, Callable[[Path], Rows]] = {
    "csv": lambda path: list(csv.DictReader(path.read_text().splitlines())),
    "duckdb": lambda path: by_sql(f"SELECT * FROM read_csv('{path}')"),
    "pandas": lambda path: pd.read_csv(path).to_dict("records"),
    "polars": lambda path: polars.read_csv(path).to_dicts(),
}


def by_sql(query: str) -> Rows:
    relation = duckdb.sql(query)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


@pytest.fixture(scope="module", params=["float32", "float16"])
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output(tmp_path_factory.mktemp("readers") / "out", request.param)


def rows_of(out: Path) -> tuple[list[str], np.ndarray]:
    store = clip.Store(out)
    return store.table(["id"]).column("id").to_pylist(), np.asarray(store.vectors())


@pytest.mark.parametrize("reader", READERS)
def test_parts_are_read(out: Path, reader: str) -> None:
    ids, vectors = rows_of(out)
    rows = READERS[reader](*sorted((out / "embeddings").iterdir()))
    assert [row["id"] for row in rows] == ids
    assert np.array_equal(np.array([row["embedding"] for row in rows], vectors.dtype), vectors)
    assert {(row["width"], row["format"], row["size_bytes"]) for row in rows} == {(640, "JPEG", 9)}
    assert [row["error"] for row in READERS[reader](*(out / "failures").iterdir())] == ["OSError"] * 2
    assert len(READERS[reader](*(out / "_plan").glob("*.parquet"))) == 20


@pytest.mark.parametrize("reader", READERS)
def test_tables_of_exports_are_read(out: Path, tmp_path: Path, reader: str) -> None:
    ids, vectors = rows_of(out)
    for form, table in (("npy", "ids"), ("safetensors", "ids"), ("clip-retrieval", "metadata/metadata_*")):
        export(ExportJob(output=out, target=tmp_path / form, format=form))  # type: ignore[arg-type]
        rows = READERS[reader](*sorted((tmp_path / form).glob(f"{table}.parquet")))
        assert [row["id"] for row in rows] == ids
    assert np.array_equal(np.load(tmp_path / "npy/vectors.npy", mmap_mode="r"), vectors)
    assert np.array_equal(load_file(tmp_path / "safetensors/vectors.safetensors")["embedding"], vectors)
    with safe_open(tmp_path / "safetensors/vectors.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("embedding"), vectors)
    blocks = [np.load(path) for path in sorted((tmp_path / "clip-retrieval/img_emb").iterdir())]
    assert np.abs(np.concatenate(blocks).astype(np.float32) - vectors).max() < 2e-3


@pytest.mark.parametrize("reader", CSV_READERS)
def test_lines_of_an_export_are_read(out: Path, tmp_path: Path, reader: str) -> None:
    ids, vectors = rows_of(out)
    export(ExportJob(output=out, target=tmp_path / "to", format="csv"))
    rows = CSV_READERS[reader](tmp_path / "to/vectors.csv")
    assert [row["id"] for row in rows] == ids
    numbers = [[float(row[f"e{place}"]) for place in range(vectors.shape[1])] for row in rows]
    assert np.array_equal(np.array(numbers, vectors.dtype), vectors)


def test_the_readers_here_are_those_that_the_documents_name() -> None:
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/export.md", "docs/embed.md")]
    named = set(re.findall(r"\b(duckdb|polars|pandas|pyarrow|fastparquet|vaex|dask)\b", " ".join(pages)))
    assert named <= READERS.keys()
    assert {"duckdb", "polars", "pandas"} <= named
