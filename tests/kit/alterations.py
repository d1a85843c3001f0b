"""What happens to an output that is copied, shared, synced and rewritten: changes of one of its files."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq

from clip.store.checksums import dump_json

Alteration = Callable[[Path, random.Random], None]
HUGE = (10**12, -1, 2**63, float("nan"), float("inf"), None, "7", [], {}, True, 0)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    keep_time(path, bytes(data))


def cut(path: Path, rng: random.Random) -> None:
    keep_time(path, path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path: Path, rng: random.Random) -> None:
    data, start = path.read_bytes(), rng.randrange(path.stat().st_size)
    keep_time(path, data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :])


def append(path: Path, rng: random.Random) -> None:
    keep_time(path, path.read_bytes() + rng.randbytes(9))


def keep_time(path: Path, data: bytes) -> None:
    """Write a file as damage at rest does: its time of change stays."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def put_pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def put_socket(path: Path, _: random.Random) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # as a socket's path may have 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def put_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link_to(target: str) -> Alteration:
    def put_link(path: Path, _: random.Random) -> None:
        path.unlink()
        path.symlink_to(target)

    return put_link


ON_ANY_FILE: dict[str, Alteration] = {
    **{"flip": flip, "cut": cut, "zero": zero, "append": append, "remove": remove},
    **{"pipe": put_pipe, "socket": put_socket, "folder": put_folder},
    **{
        "dangling": link_to("nowhere"),
        "itself": link_to("."),
        "device": link_to("/dev/zero"),
        "tty": link_to("/dev/tty"),
    },
}


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Alteration:
    """Write a table anew with its metadata, as pyarrow does."""

    def altered(path: Path, _: random.Random) -> None:
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return altered


def set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def null_first(name: str) -> Callable[[pa.Table], pa.Table]:
    def nulled(table: pa.Table) -> pa.Table:
        column = table.column(name)
        return set_column(table, name, pa.array([None, *column.to_pylist()[1:]], column.type))

    return nulled


def null_number(table: pa.Table) -> pa.Table:
    column = table.column("embedding")
    rows = column.to_pylist()
    return set_column(table, "embedding", pa.array([[None, *rows[0][1:]], *rows[1:]], column.type))


def with_lists(table: pa.Table) -> pa.Table:
    kind = pa.list_(table.schema.field("embedding").type.value_type)
    return set_column(table, "embedding", table.column("embedding").cast(kind))


def with_doubles(table: pa.Table) -> pa.Table:
    kind = table.schema.field("embedding").type
    return set_column(table, "embedding", table.column("embedding").cast(pa.list_(pa.float64(), kind.list_size)))


# Changes that never leave a sound part, whether it carries checksums or not.
NEVER_SOUND: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a null vector": null_first("embedding"),
    "a null number": null_number,
    "a null id": null_first("id"),
    "a null path": null_first("path"),
    "vectors as lists": with_lists,
    "vectors as doubles": with_doubles,
    "vectors of one number less": lambda table: set_column(
        table,
        "embedding",
        pa.array([row[1:] for row in table.column("embedding").to_pylist()], pa.list_(pa.float32(), 7)),
    ),
    "ids as bytes": lambda table: set_column(table, "id", table.column("id").cast(pa.binary())),
    "ids as numbers": lambda table: set_column(table, "id", pa.array(range(len(table)))),
    "ids as large texts": lambda table: set_column(table, "id", table.column("id").cast(pa.large_string())),
    "no ids": lambda table: table.drop_columns(["id"]),
    "ids twice": lambda table: table.append_column("id", table.column("id")),
    "ids that are not UTF-8": lambda table: set_column(
        table, "id", pa.array([b"\xff\xfe"] * len(table)).view(pa.string()) if len(table) else table.column("id")
    ),
    "a row less": lambda table: table.slice(1),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "no rows": lambda table: table.slice(0, 0),
}
# What only checksums find.
REORDERED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "nothing changed": lambda table: table,
    "turned round": lambda table: table.take(list(range(len(table)))[::-1]),
    "a row for another": lambda table: pa.concat_tables([table.slice(1), table.slice(1, 1)]),
    "a column more": lambda table: table.append_column("more", pa.array(["x"] * len(table))),
}


def by_pandas(path: Path, _: random.Random) -> None:
    pd.read_parquet(path).to_parquet(path)


def by_polars(path: Path, _: random.Random) -> None:
    polars.read_parquet(path, glob=False).write_parquet(path)


def by_duckdb(path: Path, _: random.Random) -> None:
    duckdb.sql(f"COPY (SELECT * FROM read_parquet('{path}')) TO '{path}.new' (FORMAT parquet)")
    Path(f"{path}.new").replace(path)


ON_PARTS: dict[str, Alteration] = {
    **{name: rewrite(change) for name, change in (NEVER_SOUND | REORDERED).items()},
    **{"by pandas": by_pandas, "by polars": by_polars, "by DuckDB": by_duckdb},
}


def swap_parts(out: Path, _: random.Random) -> None:
    first, second = sorted((out / "embeddings").iterdir())
    first.rename(out / "x")
    second.rename(first)
    (out / "x").rename(second)


def copy_part(out: Path, _: random.Random) -> None:
    shutil.copy(out / "embeddings/part-00000.parquet", out / "embeddings/part-00007.parquet")


def put_failures_for_rows(out: Path, _: random.Random) -> None:
    shutil.copy(out / "failures/part-00000.parquet", out / "embeddings/part-00000.parquet")


def add_foreign(out: Path, rng: random.Random) -> None:
    names = (".DS_Store", "Thumbs.db", "desktop.ini", "foo.parquet", "part (1).parquet", "part-00000 (1).parquet")
    names += ("part-00000.sync-conflict-20260101-120000-ABCDEFG.parquet", "part-1.parquet", "._part-00000.parquet")
    for folder in ("embeddings", "failures", "_plan", "_index", "."):
        path = out / folder / rng.choice(names)
        if rng.random() < 0.5:
            shutil.copy(out / "embeddings/part-00000.parquet", path)
        else:
            os.mkfifo(path)


ON_OUTPUT: dict[str, Alteration] = {
    **{"parts swapped": swap_parts, "a part copied": copy_part, "failures for rows": put_failures_for_rows},
    "foreign files": add_foreign,
}


def change_json(path: Path, rng: random.Random, *, sealed: bool) -> None:
    """Put a number or type that cannot be into a JSON file, with a valid checksum if `sealed`."""
    content: dict[str, Any] = json.loads(path.read_text())
    content.pop("checksum", None)
    place, key = content, rng.choice(list(content))
    while isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
        place, key = place[key], rng.choice(list(place[key]))
    place[key] = rng.choice(HUGE)
    path.write_bytes(dump_json(content) if sealed else json.dumps(content).encode())


def lie_about_rows(path: Path, rows: int) -> None:
    """Write a part whose footer counts other rows than it holds, the checksums aside."""
    table = pq.read_table(path)
    data = path.read_bytes()
    position = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    old, new = _zigzag(len(table)), _zigzag(rows)
    footer = data[position:-8].replace(b"\x16" + old, b"\x16" + new)
    path.write_bytes(data[:position] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def _zigzag(number: int) -> bytes:
    value, data = (number << 1) ^ (number >> 63), bytearray()
    value &= 2**64 - 1
    while value >= 128:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def unseal(out: Path) -> None:
    """Make an output one without checksums, as version 0.1.0 wrote it."""
    for path in [*out.glob("embeddings/*"), *out.glob("failures/*"), *out.glob("_plan/shard-*")]:
        table = pq.read_table(path)
        metadata = {key: value for key, value in table.schema.metadata.items() if key != b"clip.checksum"}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    for path in (out / "manifest.json", out / "_plan/plan.json"):
        content = json.loads(path.read_text())
        for key in ("run", "checksum"):
            content.pop(key, None)
        path.write_text(json.dumps(content))
    shutil.rmtree(out / "_index")


def list_files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size)
