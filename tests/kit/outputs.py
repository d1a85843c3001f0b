"""Read what a run wrote, without the package's own reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def read_rows(out: Path, folder: str = "embeddings") -> list[dict[str, Any]]:
    """Return the rows of all parts, in the order of the parts' names."""
    return [row for part in sorted((out / folder).iterdir()) for row in pq.read_table(part).to_pylist()]


def read_rows_by_id(out: Path, folder: str = "embeddings") -> dict[str, dict[str, Any]]:
    rows = read_rows(out, folder)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows), "an id occurs twice"
    return by_id


def read_vectors(out: Path) -> dict[str, np.ndarray]:
    return {own_id: np.array(row["embedding"], np.float64) for own_id, row in read_rows_by_id(out).items()}


def read_manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())
