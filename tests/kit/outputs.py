"""Read what a run wrote, without the package's own reader; write it as a run would."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip.store.checksums import KEY, TableWriter, dump_json


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


def write_part(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write a part as a run would that had these rows: with valid checksums, and by default the table's metadata."""
    kept = table.schema.metadata if metadata is None else metadata
    kept = {key: value for key, value in (kept or {}).items() if key not in (b"ARROW:schema", KEY)}
    schema = table.schema.with_metadata(kept)
    run = read_manifest(path.parent.parent).get("run", "")
    with path.open("wb") as file:
        writer = TableWriter(file, schema, f"{run}/{path.parent.name}/{path.name}")
        writer.write(table.cast(schema))
        writer.close()


def change_manifest(out: Path, **values: Any) -> None:
    """Change values of a manifest, and its checksum."""
    content = read_manifest(out) | values
    content.pop("checksum", None)
    (out / "manifest.json").write_bytes(dump_json(content))
