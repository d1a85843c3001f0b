"""The same images in every form that an input can have, and what a run made of them."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clip
from kit import formula
from kit.jobs import embed_job

IMAGES = 30
NAMES = [f"{'sub/' if n % 3 else ''}{n:02}.{'jpg' if n % 2 else 'png'}" for n in range(IMAGES)]
BAD = "17.broken.png"
ALL = [*NAMES, BAD]


def draw(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """Draw images in two folders, a damaged one, and a text."""
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(names):
        formula.picture(n, 40 + n % 50, 30).save(folder / name)
    (folder / BAD).write_bytes((folder / names[0]).read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


Contents = tuple[dict[str, list[float]], dict[str, tuple[str, str]]]


def contents(output: Path) -> Contents:
    """Return vectors and failures by id, each id once."""
    tables = [pq.read_table(output / name).to_pylist() for name in ("embeddings", "failures")]
    assert len({row["id"] for table in tables for row in table}) == sum(map(len, tables))
    return (
        {row["id"]: row["embedding"] for row in tables[0]},
        {row["id"]: (row["stage"], row["error"]) for row in tables[1]},
    )


def embedded(output: Path, weights: Path, *inputs: str | Path, **choices: Any) -> Contents:
    choices = {"threads": 1, "shard_size": 7} | choices
    report = clip.embed(embed_job(source=inputs, output=output, model=str(weights), **choices))
    assert report.read == report.written + report.failed
    found = contents(output)
    assert (report.written, report.failed) == tuple(map(len, found))
    return found


def check_same(found: Contents, expected: Contents, own_id: Callable[[str], str]) -> None:
    """Check that vectors and failures are the same, under the ids of a form."""
    assert set(found[0]) == {own_id(name) for name in expected[0]}
    for name, vector in expected[0].items():
        assert np.abs(np.subtract(found[0][own_id(name)], vector)).max() < 1e-5, name
    assert found[1] == {own_id(name): reason for name, reason in expected[1].items()}


def write_list(photos: Path | str, path: Path, kind: str, names: Sequence[str] = ALL) -> Path:
    lines = [f"{photos}/{name}" for name in names]
    if kind == "csv" or kind == "tsv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerow(["caption", "image_path", "key"])
            writer.writerows([f'a "{name}", drawn', line, name] for name, line in zip(names, lines, strict=True))
    elif kind == "ndjson":
        path.write_text(
            "\n".join(json.dumps({"url": line, "key": name}) for name, line in zip(names, lines, strict=True))
        )
    elif kind == "nul":
        path.write_text("\0".join([*lines, ""]))
    else:
        path.write_bytes("\r\n".join([*lines, "", ""]).encode())
    return path


def write_tar(photos: Path, path: Path, mode: str = "w", prefix: str = "", names: Sequence[str] = ALL) -> Path:
    with tarfile.open(path, mode) as archive:
        for name in [*names, "notes.txt"]:
            archive.add(photos / name, prefix + name)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return path


def write_zip(photos: Path, path: Path, method: int = zipfile.ZIP_DEFLATED, names: Sequence[str] = ALL) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("sub")
        for name in [*names, "notes.txt"]:
            archive.write(photos / name, name)
    return path


def write_table(photos: Path | str, path: Path, kind: str, names: Sequence[str] = ALL) -> Path:
    """`kind` is what the column holds; images that are only named are below `photos`, which may be a URL."""
    column: Any
    if kind in ("paths", "struct of paths"):
        paths = [f"{photos}/{name}" for name in names]
        column = paths if kind == "paths" else [{"bytes": None, "path": one} for one in paths]
    else:
        data = [(Path(photos) / name).read_bytes() for name in names]
        column = (
            data if kind == "bytes" else [{"bytes": one, "path": name} for one, name in zip(data, names, strict=True)]
        )
    table = pa.table({"image": column, "key": names, "caption": [f"image {name}" for name in names]})
    pq.write_table(table, path, row_group_size=5)
    return path


def pack_zip(path: Path, contents: dict[str, bytes]) -> Path:
    """An archive of these files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # of 1980, so that the bytes are the same each time
    return path


def pack_tar(path: Path, contents: dict[str, bytes]) -> Path:
    """An archive of these files."""
    with tarfile.open(path, "w") as archive:
        for name, data in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path
