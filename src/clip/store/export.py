"""export(job): write the vectors and rows of an output into files that other programs read.

    npy             vectors.npy (N, D) and ids.parquet
    clip-retrieval  img_emb/img_emb_0.npy and metadata/metadata_0.parquet, and so on, a pair for each part
    csv             vectors.csv: the columns of a row, then e0 to e{D-1}
    safetensors     vectors.safetensors with a tensor "embedding" (N, D), and ids.parquet
    pgvector        pgvector.csv: the columns of a row, then its vectors as [0.1,0.2]; and pgvector.sql, which loads it

Vectors of texts get the same names, except text_emb/text_emb_0.npy in clip-retrieval. Pairs add
text_vectors.npy, text_emb/, t0 to t{D-1}, and a tensor "text_embedding".

export.json is written beside them; its "rows" is null until everything is written. Rows have the order of the parts.
Parts are read one ahead, so that memory depends on their size and not on their number.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import TEMPORARY, atomic_write, make_folder, read_regular, translate_os_errors
from ..errors import InputError, StoreError, StoreMismatchError
from ..jobs.export import ExportJob, ExportReport
from ..jobs.merge import MergeJob
from ..object_paths import ObjectPath
from ..parallel import map_ahead
from .manifest import MANIFEST, read_manifest
from .merge import merge
from .parts import EMBEDDING, TEXT_EMBEDDING, stack_vectors, vector_columns
from .reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import BinaryIO

    from ..jobs.options import ExportFormat

SUMMARY, IDS = "export.json", "ids.parquet"
NPY = {EMBEDDING: "vectors.npy", TEXT_EMBEDDING: "text_vectors.npy"}
CSV, SAFETENSORS = "vectors.csv", "vectors.safetensors"
PGVECTOR, PGVECTOR_LOAD, PG_TABLE = "pgvector.csv", "pgvector.sql", "clip"
CSV_PREFIXES = {EMBEDDING: "e", TEXT_EMBEDDING: "t"}
IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
OURS = (
    *(*NPY.values(), CSV, SAFETENSORS, IDS, PGVECTOR, PGVECTOR_LOAD),
    *(f"{IMAGES}/{IMAGES}_*.npy", f"{TEXTS}/{TEXTS}_*.npy", f"{METADATA}/{METADATA}_*.parquet"),
)
CLIP_RETRIEVAL_DTYPE = "float16"
INFO = ("model", "weights_sha256", "weights_source", "preprocess", "normalised", "dtype", "dim")  # manifest keys
CSV_ROWS = 256  # written at a time: with 512 numbers per row these are 130,000 strings, about 15 MB
MAX_SUMMARY_BYTES = 2**20
ALIGNMENT = 8  # of the numbers in a safetensors file, by spaces at the end of its header [Unit: byte]

_log = logging.getLogger("clip")


def export(job: ExportJob) -> ExportReport:
    """Write the vectors of a finished run, with the other columns of its rows, into a separate folder.

    After an error the folder holds nothing of the export. Several outputs are merged first, by links where they are on
    one disk, in a folder beside the target.

    Raises:  as `merge` for several; StoreError where there is no output, its run is not over, a part is damaged, or the
             target cannot be written; StoreMismatchError where the target holds anything but an export that may be
             overwritten; InputError for a target inside the output.
    """
    if len(job.outputs) > 1:
        beside = Path(job.target).absolute().parent
        with translate_os_errors(beside), TemporaryDirectory(prefix=".clip-export-", dir=beside) as folder:
            merged = merge(MergeJob(source=job.outputs, output=Path(folder, "merged")))
            return export(replace(job, output=merged.output))
    run = _Run(Store(next(iter(job.outputs))))
    target = _Target(Path(job.target))
    target.check(run.store.path, overwrite=job.overwrite)
    run.check_names(job.format)
    with translate_os_errors(target.path), target.prepare({"format": job.format, **run.describe(job.format)}):
        WRITERS[job.format](run, target)
        run.check_unchanged()
        target.finish(run.rows)
    return ExportReport(target.path, tuple(target.files), run.rows)


class _Run:
    """Reads a finished run part by part."""

    def __init__(self, store: Store) -> None:
        self.store = store
        counts = store.manifest.counts
        if counts is None:
            raise StoreError(store.path, "the run is not over", "a finished one", "Run the job again to resume it.")
        rows = {path: store.files.summarise(path).rows for path in store.parts()}
        self.parts = [path for path, count in rows.items() if count]
        self.rows = sum(rows.values())
        store.check_rows(self.rows)
        self._all_columns = store.files.read_schema(self.parts[0]) if self.parts else store.schema
        self.schema = _select_plain(self._all_columns)  # without vectors
        self.columns = vector_columns(store.schema)
        left_out = [name for name in self._all_columns.names if name not in {*self.schema.names, *self.columns}]
        if left_out:
            _log.warning("%s: columns %s are not exported, as they hold no plain values", store.path, left_out)
        self.dtype = np.dtype(store.manifest.dtype).newbyteorder("<")

    def describe(self, form: ExportFormat) -> dict[str, Any]:
        """Return what the manifest says of the vectors, as they are in this format."""
        manifest = self.store.manifest.to_json()
        info = {name: manifest[name] for name in INFO}
        return info | {"normalised": True, "dtype": CLIP_RETRIEVAL_DTYPE} if form == "clip-retrieval" else info

    def check_names(self, form: ExportFormat) -> None:
        """Refuse columns with names that the format itself uses. Raises: StoreError."""
        new_names = {new for old, new in self.retrieval_names().items() if new != old}
        reserved = {"csv": set(self.vector_names()), "clip-retrieval": new_names}.get(form, set[str]())
        clashing = [name for name in self.schema.names if name in reserved]
        if clashing:
            expected = f"no column with a name that {form} itself uses"
            raise StoreError(self.store.path, f"has a column {clashing[0]!r}", expected, "Choose another format.")

    def vector_names(self) -> list[str]:
        """Return names for the numbers of a row's vectors."""
        return [f"{CSV_PREFIXES[name]}{place}" for name in self.columns for place in range(self.store.dim)]

    def retrieval_names(self) -> dict[str, str]:
        """Return the names that clip-retrieval has for the columns."""
        has_images = self.store.manifest.kind != "texts"
        known = {"text": "caption"} | ({"path": "image_path"} if has_images else {})
        names: list[str] = self.schema.names
        return {name: known.get(name, name) for name in names}

    def read(self) -> Iterator[tuple[pa.Table, dict[str, np.ndarray]]]:
        """Yield the plain columns, and the vectors by column, of each part that has rows.

        Shapes:  float32 or float16 (N, D), little-endian.
        Raises:  StoreError for a part that is damaged or has other columns.
        """
        return map_ahead(self._read_part, self.parts, workers=1, ahead=2)

    def _read_part(self, path: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
        schema = self.store.files.read_schema(path)
        fields = list(schema)
        if not (schema.equals(self._all_columns) and all(field in fields for field in self.store.schema)):
            found = f"its columns are {schema.names}"
            remedy = "Run the job again with `overwrite=True`."
            raise StoreError(path, found, "those of the manifest, with the same types in all parts", remedy)
        table = self.store.files.read(path, [*self.schema.names, *self.columns])
        vectors = {name: stack_vectors(table, self.store.schema, name) for name in self.columns}
        table = self.store.locate_all(table)
        little_endian = {name: block.astype(self.dtype, copy=False) for name, block in vectors.items()}
        return table.select(self.schema.names), little_endian

    def check_unchanged(self) -> None:
        """Raise StoreError where another job began on the output meanwhile."""
        if read_manifest(self.store.path / MANIFEST) != self.store.manifest:
            raise StoreError(self.store.path, "changed while it was read", "no job on it", "Export it again.")


def _select_plain(schema: pa.Schema) -> pa.Schema:
    """Return the columns that every format can write: text, numbers, booleans, times."""
    kinds = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating),
        *(pa.types.is_boolean, pa.types.is_temporal),
    )
    return pa.schema([field for field in schema if any(is_kind(field.type) for is_kind in kinds)])


class _Target:
    """The folder to write: empty, or with an export that may be overwritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] = []
        self._info: dict[str, Any] = {}

    def check(self, output: Path, *, overwrite: bool) -> None:
        """Refuse a folder with files that an export must not add to or remove.

        Raises:  InputError, StoreMismatchError.
        """
        if not isinstance(output, ObjectPath) and self.path.resolve().is_relative_to(output.resolve()):
            raise InputError(self.path, f"is inside {output}", "a separate folder", "Choose another target.")
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise StoreMismatchError(self.path, "is a file", "a folder or nothing", "Choose another target.")
        existing = sorted(path.name for path in self.path.iterdir() if not path.name.endswith(TEMPORARY))
        if existing and not _is_summary(self.path / SUMMARY):
            found = f"holds {existing[0]!r} and no {SUMMARY} of ours"
            raise StoreMismatchError(self.path, found, "an empty folder or nothing", "Choose another target.")
        if existing and not overwrite:
            remedy = "Pass `overwrite=True` to replace it."
            raise StoreMismatchError(self.path, "holds an export", "an empty folder or nothing", remedy)

    @contextmanager
    def prepare(self, info: dict[str, Any]) -> Generator[None]:
        """Make the folder and remove an earlier export. After an error, remove all that this one wrote."""
        self._info = info
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._summarise(None)  # first, so that a later export knows these files as ours
            self._clear()
            yield
        except BaseException:
            self._clear()
            (self.path / SUMMARY).unlink(missing_ok=True)
            raise

    @contextmanager
    def open_file(self, name: str) -> Generator[BinaryIO]:
        """Open a file that appears when it is complete."""
        path = self.path / name
        make_folder(path.parent)
        with atomic_write(path) as file:
            yield file
        self.files.append(name)

    def finish(self, rows: int) -> None:
        """Record that everything is written."""
        self._summarise(rows)
        self.files.append(SUMMARY)

    def _summarise(self, rows: int | None) -> None:
        with atomic_write(self.path / SUMMARY) as file:
            file.write(json.dumps({**self._info, "rows": rows}, indent=2).encode() + b"\n")

    def _clear(self) -> None:
        for pattern in OURS:
            folder, name = (self.path / pattern).parent, Path(pattern).name
            if folder != self.path and folder.is_symlink():
                continue  # nothing is removed through a link
            for path in [*folder.glob(name), *folder.glob(f".{name}.*{TEMPORARY}")]:
                path.unlink()
        for folder in (IMAGES, TEXTS, METADATA):
            with suppress(OSError):  # missing, or with other files in it
                (self.path / folder).rmdir()


def _is_summary(path: Path) -> bool:
    try:
        content = json.loads(read_regular(path, MAX_SUMMARY_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format", "dim", "rows"} <= content.keys()


def _write_npy(run: _Run, target: _Target) -> None:
    header = io.BytesIO()
    shape = (run.rows, run.store.dim)
    np.lib.format.write_array_header_1_0(header, {"descr": run.dtype.str, "fortran_order": False, "shape": shape})
    with ExitStack() as files:
        vectors = {name: files.enter_context(target.open_file(NPY[name])) for name in run.columns}
        for file in vectors.values():
            file.write(header.getvalue())
        for blocks in _write_ids(run, target):
            for name, file in vectors.items():
                file.write(blocks[name].tobytes())


def _write_safetensors(run: _Run, target: _Target) -> None:
    """Write the header, then the numbers as they are read; the library would need all tensors in memory.

    Source:  huggingface/safetensors README.md, "Format": the header's length (8 bytes, little-endian), the header
             (JSON), the numbers (little-endian, row by row), tensor by tensor; metadata are strings.
    """
    size_bytes = run.rows * run.store.dim * run.dtype.itemsize
    tensors = {
        name: {
            "dtype": {"float32": "F32", "float16": "F16"}[run.dtype.name],
            "shape": [run.rows, run.store.dim],
            "data_offsets": [place * size_bytes, (place + 1) * size_bytes],
        }
        for place, name in enumerate(run.columns)
    }
    info = run.describe("safetensors").items()
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in info}
    header = json.dumps({"__metadata__": strings, **tensors}).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    with target.open_file(SAFETENSORS) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for blocks in _write_ids(run, target):
            file.write(blocks[EMBEDDING].tobytes())
        for name in run.columns[1:]:
            for _, blocks in run.read():
                file.write(blocks[name].tobytes())


def _write_ids(run: _Run, target: _Target) -> Iterator[dict[str, np.ndarray]]:
    """Yield the vectors part by part, and write the other columns into a table meanwhile."""
    with target.open_file(IDS) as ids, pq.ParquetWriter(ids, run.schema) as table:
        for rows, blocks in run.read():
            yield blocks
            table.write_table(rows)


def _write_clip_retrieval(run: _Run, target: _Target) -> None:
    """Write a partition for each part that has rows; readers pair the n-th .npy with the n-th .parquet by name.

    Source:  rom1504/clip-retrieval clip_inference/writer.py (names, zeros: int(log10(partitions)) + 1 digits, no files
             for an empty partition) and mapper.py (unit length, float16); rom1504/embedding-reader numpy_reader.py.
    """
    digits = len(str(len(run.parts)))
    names = list(run.retrieval_names().values())
    is_text = run.store.manifest.kind == "texts"
    folders = {name: TEXTS if is_text or name == TEXT_EMBEDDING else IMAGES for name in run.columns}
    for number, (rows, blocks) in enumerate(run.read()):
        with target.open_file(f"{METADATA}/{METADATA}_{number:0{digits}}.parquet") as file:
            pq.write_table(rows.rename_columns(names), file)
        for name, folder in folders.items():
            unit = blocks[name] if run.store.manifest.normalised else _normalise(blocks[name])
            with target.open_file(f"{folder}/{folder}_{number:0{digits}}.npy") as file:
                np.save(file, unit.astype("<f2"))


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors by their L2 norm; zeros stay. Shapes: (N, D) -> float64 (N, D)."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms == 0, 1, norms)


def _write_csv(run: _Run, target: _Target) -> None:
    """Write as RFC 4180 says: CRLF, quotes where needed. A number has the fewest digits that identify it."""
    with target.open_file(CSV) as file:
        file.write(_format_lines([[*run.schema.names, *run.vector_names()]]))
        for rows, blocks in run.read():
            for start in range(0, len(rows), CSV_ROWS):
                columns = [map(_format_value, column.to_pylist()) for column in rows.slice(start, CSV_ROWS).columns]
                several = [blocks[name][start : start + CSV_ROWS].astype(str) for name in run.columns]
                numbers = np.concatenate(several, axis=1).tolist()  # (N, D) each -> (N, D or 2 D)
                rows_of_text = zip(*columns, strict=True)
                file.write(_format_lines([[*row, *vector] for row, vector in zip(rows_of_text, numbers, strict=True)]))


def _write_pgvector(run: _Run, target: _Target) -> None:
    """Write what PostgreSQL's COPY reads, and the commands that make a table of it.

    Source:  pgvector README.md, "Loading": vectors are [1,2,3]; PostgreSQL 17, COPY, "CSV Format".
    """
    columns = [f'"{field.name}" {_find_sql_type(field.type)}' for field in run.schema]
    columns += [f'"{name}" vector({run.store.dim})' for name in run.columns]
    load = (
        "CREATE EXTENSION IF NOT EXISTS vector;\n"
        f"CREATE TABLE {PG_TABLE} ({', '.join(columns)});\n"
        f"\\copy {PG_TABLE} FROM '{PGVECTOR}' WITH (FORMAT csv, HEADER)\n"
    )
    with target.open_file(PGVECTOR) as file:
        file.write(_format_lines([[*run.schema.names, *run.columns]]))
        for rows, blocks in run.read():
            for start in range(0, len(rows), CSV_ROWS):
                values = [map(_format_value, column.to_pylist()) for column in rows.slice(start, CSV_ROWS).columns]
                vectors = [
                    [f"[{','.join(row)}]" for row in blocks[name][start : start + CSV_ROWS].astype(str).tolist()]
                    for name in run.columns
                ]
                file.write(_format_lines([list(row) for row in zip(*values, *vectors, strict=True)]))
    with target.open_file(PGVECTOR_LOAD) as file:
        file.write(load.encode())


def _find_sql_type(kind: pa.DataType) -> str:
    """Return PostgreSQL's type for a column; times are kept as they are spelt."""
    kinds = pa.types
    if kinds.is_boolean(kind):
        return "boolean"
    if kinds.is_integer(kind):
        return "numeric" if kinds.is_uint64(kind) else "bigint"
    return "double precision" if kinds.is_floating(kind) else "text"


def _format_lines(rows: list[list[str]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode()


def _format_value(value: object) -> str:
    """Return a field of a line: empty for a null, true and false as in JSON."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


WRITERS: dict[ExportFormat, Callable[[_Run, _Target], None]] = {
    "npy": _write_npy,
    "clip-retrieval": _write_clip_retrieval,
    "csv": _write_csv,
    "safetensors": _write_safetensors,
    "pgvector": _write_pgvector,
}
