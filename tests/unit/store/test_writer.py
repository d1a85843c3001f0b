"""The output folder: its columns, files that are complete or absent, and what it refuses to touch."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip.errors import StoreError, StoreMismatchError
from clip.jobs.options import Columns, DecodeOptions, Limits
from clip.records import Failure, Row, Shard
from clip.store import parts
from clip.store.manifest import COMPARED_KEYS, Manifest
from clip.store.reader import Store
from clip.store.writer import StoreWriter

DIM = 4
INPUT = "the input's hash"
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def writer(path: Path, dtype: str = "float32", *, overwrite: bool = False, **manifest: Any) -> StoreWriter:
    made = StoreWriter(path, Manifest(dim=DIM, dtype=dtype, **manifest), overwrite=overwrite)
    made.begin(INPUT)
    return made


def rows(count: int) -> list[Row]:
    return [Row(f"{n}.jpg", f"in/{n}.jpg", 640 + n, 480, "JPEG", 10**10 + n) for n in range(count)]


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, DIM)).astype(np.float32)


def failures(count: int) -> list[Failure]:
    return [Failure(f"bad{n}.jpg", f"in/bad{n}.jpg", "decode", "OSError", f"broken\n{n}") for n in range(count)]


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


@pytest.mark.parametrize(("dtype", "element"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_an_embeddings_part_holds_the_rows_and_vectors_it_was_given(
    tmp_path: Path, dtype: str, element: pa.DataType
) -> None:
    expected = vectors(3)
    writer(tmp_path, dtype).commit(Shard(7, [], "fingerprint"), rows(3), expected, [])
    table = pq.read_table(tmp_path / "embeddings/part-00007.parquet")
    assert table.schema.equals(
        pa.schema(
            {
                "id": pa.string(),
                "path": pa.string(),
                "embedding": pa.list_(element, DIM),
                "width": pa.int32(),
                "height": pa.int32(),
                "format": pa.string(),
                "size_bytes": pa.int64(),
                "warning": pa.string(),
            }
        )
    )
    columns = table.to_pydict()
    assert np.array_equal(np.array(columns.pop("embedding"), dtype), expected.astype(dtype))
    assert columns == {
        "id": ["0.jpg", "1.jpg", "2.jpg"],
        "path": ["in/0.jpg", "in/1.jpg", "in/2.jpg"],
        "width": [640, 641, 642],
        "height": [480] * 3,
        "format": ["JPEG"] * 3,
        "size_bytes": [10**10, 10**10 + 1, 10**10 + 2],
        "warning": [None] * 3,
    }


@pytest.mark.parametrize("keep", [(), ("warning",)])
def test_an_output_without_a_column_of_warnings_is_resumed_without(tmp_path: Path, keep: tuple[str, ...]) -> None:
    """As versions before that column wrote it; one of the copied columns could have its name."""
    writer(tmp_path, warnings=False, columns=Columns(keep=keep)).commit(Shard(0, [], "a"), [], vectors(0), [])
    resumed = writer(tmp_path, columns=Columns(keep=keep))
    assert not resumed.is_new
    given = [row._replace(warning="ours", values=("theirs",) * len(keep)) for row in rows(2)]
    resumed.commit(Shard(1, [], "b"), given, vectors(2), [])
    store = Store(tmp_path)
    assert store.table().column_names[-1 - len(keep) :] == ["size_bytes", *keep]
    assert [row.get("warning") for row in store.table().to_pylist()] == ["theirs" if keep else None] * 2
    anew = writer(tmp_path, columns=Columns(keep=keep), overwrite=True)
    anew.commit(Shard(0, [], "a"), given, vectors(2), [])
    [first, _] = Store(tmp_path).table().to_pylist()
    assert (first["warning"], first.get("kept_warning")) == ("ours", "theirs" if keep else None)


def test_a_failures_part_holds_the_failures_it_was_given(tmp_path: Path) -> None:
    writer(tmp_path).commit(Shard(0, [], "fingerprint"), [], vectors(0), failures(2))
    table = pq.read_table(tmp_path / "failures/part-00000.parquet")
    assert table.schema.equals(pa.schema([(name, pa.string()) for name in ("id", "path", "stage", "error", "message")]))
    assert [Failure(**row) for row in table.to_pylist()] == failures(2)


def test_parts_without_rows_keep_their_columns(tmp_path: Path) -> None:
    writer(tmp_path).commit(Shard(0, [], "fingerprint"), [], vectors(0), [])
    embeddings, failed = (pq.read_table(tmp_path / name / "part-00000.parquet") for name in ("embeddings", "failures"))
    assert (embeddings.num_rows, failed.num_rows) == (0, 0)
    assert embeddings.schema.equals(parts.embedding_schema(Manifest(dim=DIM)))
    assert failed.schema.equals(parts.FAILURE_SCHEMA)


def test_a_path_that_is_not_utf8_is_stored_as_text(tmp_path: Path) -> None:
    path = os.fsdecode(b"in/\xff.jpg")
    row, failure = Row("a", path, 1, 1, "PNG", 1), Failure("b", path, "read", "OSError", "gone")
    writer(tmp_path, source=(path,)).commit(Shard(0, [], "fingerprint"), [row], vectors(1), [failure])
    for folder in ("embeddings", "failures"):
        assert pq.read_table(tmp_path / folder)["path"].to_pylist() == ["in/\\xff.jpg"]
    assert json.loads((tmp_path / "manifest.json").read_text())["source"] == [path]


def test_nothing_but_whole_files_under_final_names_is_left(tmp_path: Path) -> None:
    out = writer(tmp_path / "new/out", model="m")
    for index in range(2):
        out.commit(Shard(index, [], "fingerprint"), rows(2), vectors(2), failures(1))
    out.finish({"read": 6})
    parts = [f"{folder}/part-0000{index}.parquet" for folder in ("embeddings", "failures") for index in range(2)]
    assert files(tmp_path / "new/out") == [*parts, "manifest.json"]
    assert all(pq.read_metadata(tmp_path / "new/out" / part).num_rows for part in parts)
    manifest = json.loads((tmp_path / "new/out/manifest.json").read_text())
    assert (len(manifest.pop("run")), len(manifest.pop("checksum"))) == (16, 8)
    assert manifest == Manifest(dim=DIM, model="m", counts={"read": 6}, input_fingerprint=INPUT).to_json()


def test_failures_go_before_embeddings_and_each_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        events.append("sync folder" if os.path.isdir(descriptor) else "sync file")
        fsync(descriptor)

    def seen_replace(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.relative_to(tmp_path)}")
        return replace(path, target)

    out = writer(tmp_path)
    monkeypatch.setattr("os.fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    out.commit(Shard(3, [], "fingerprint"), rows(1), vectors(1), failures(1))
    assert events == [
        *("sync file", "rename to failures/part-00003.parquet", "sync folder"),
        *("sync file", "rename to embeddings/part-00003.parquet", "sync folder"),
    ]


def _fail(*_: Any) -> None:
    raise NO_SPACE


def _fail_half_way(_table: pa.Table, file: BinaryIO, **_: Any) -> None:
    file.write(b"PAR1 and no more")
    raise NO_SPACE


BREAKAGES = {"pyarrow.parquet.ParquetWriter.write_table": _fail, "os.fsync": _fail, "pathlib.Path.replace": _fail}


@pytest.mark.parametrize("name", BREAKAGES)
def test_an_error_while_writing_leaves_no_file_and_names_the_one_it_was_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = writer(tmp_path)
    monkeypatch.setattr(name, BREAKAGES[name])
    with pytest.raises(StoreError, match=r"part-00000\.parquet: cannot be written \(No space left on device\)"):
        out.commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), failures(1))
    assert files(tmp_path) == ["manifest.json"]


def test_an_error_in_the_embeddings_leaves_the_failures_whole_and_no_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = pq.ParquetWriter.close

    def fail_second(self: pq.ParquetWriter) -> None:
        if "embedding" in self.schema.names:
            raise NO_SPACE
        close(self)

    out = writer(tmp_path)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.close", fail_second)
    with pytest.raises(StoreError, match=r"embeddings/part-00000\.parquet"):
        out.commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), failures(1))
    assert files(tmp_path) == ["failures/part-00000.parquet", "manifest.json"]
    assert pq.read_table(tmp_path / "failures").num_rows == 1


def test_an_interrupt_while_writing_leaves_no_file_and_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    out = writer(tmp_path)
    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        out.commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), [])
    assert files(tmp_path) == ["manifest.json"]


@contextmanager
def disk_full_after(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow further: the nearest thing to a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_under_a_part_is_an_error_of_ours_and_leaves_no_file(tmp_path: Path) -> None:
    out = writer(tmp_path)
    out.commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), [])
    before = files(tmp_path)
    with disk_full_after(16_384), pytest.raises(StoreError, match=r"embeddings/part-00001\.parquet: cannot be written"):
        out.commit(Shard(1, [], "fingerprint"), rows(5000), vectors(5000), [])
    assert files(tmp_path) == before
    out.commit(Shard(1, [], "fingerprint"), rows(5000), vectors(5000), [])
    assert pq.read_table(tmp_path / "embeddings").num_rows == 5001


def test_a_manifest_that_cannot_be_finished_stays_as_it_was(tmp_path: Path) -> None:
    out = writer(tmp_path)
    before = (tmp_path / "manifest.json").read_text()
    with disk_full_after(100), pytest.raises(StoreError, match="cannot be written"):
        out.finish({"read": "x" * 1000})
    assert (tmp_path / "manifest.json").read_text() == before
    assert files(tmp_path) == ["manifest.json"]


def test_a_run_that_could_not_even_write_its_manifest_can_be_repeated(tmp_path: Path) -> None:
    with disk_full_after(10), pytest.raises(StoreError, match="cannot be written"):
        writer(tmp_path / "out")
    writer(tmp_path / "out").commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), [])
    assert pq.read_table(tmp_path / "out/embeddings").num_rows == 1


@pytest.mark.parametrize("path", ["/proc/clip", "file/below"])
def test_a_folder_that_cannot_be_made_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(StoreError, match=rf"{path}: cannot be written"):
        writer(Path(path))


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    writer(tmp_path, precision="fp32").commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), [])
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(
        StoreMismatchError, match=r'precision is "fp32", expected "bf16" to resume it. Pass overwrite=True'
    ):
        writer(tmp_path, precision="bf16")
    with pytest.raises(StoreMismatchError, match=r"its input changed since\. Add update=True"):
        StoreWriter(tmp_path, Manifest(dim=DIM, precision="fp32")).begin("another")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


RECORDED = Manifest(
    weights_sha256="x",
    weights_source="here",
    architecture={"embed_dim": 512},
    preprocess="x",
    preprocess_settings={"resolution_px": 224},
    computed_in="fp32",
    columns=Columns(keep=("price",), types=("double",), delimiter=",", quoting="standard"),
    dim=DIM,
)
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("weights_sha256", {"weights_sha256": "y"}),
    ("architecture", {"architecture": {"embed_dim": 768}}),
    ("preprocess", {"preprocess": "y"}),
    ("preprocess_settings", {"preprocess_settings": {"resolution_px": 336}}),
    ("precision", {"precision": "fp32"}),
    ("computed_in", {"computed_in": "bf16"}),
    ("calibration", {"calibration": {"pictures": 128, "sha256": "x"}}),
    ("decode", {"decode": DecodeOptions("fast")}),
    ("policies", {"decode": DecodeOptions(orient="exif")}),
    ("policies", {"decode": DecodeOptions(background="white")}),
    ("policies", {"decode": DecodeOptions(sixteen_bit="scale")}),
    ("policies", {"decode": DecodeOptions(frames="all")}),
    ("guards", {"limits": Limits(max_bytes=1)}),
    ("guards", {"limits": Limits(max_pixels=1)}),
    ("guards", {"limits": Limits(max_aspect=1.0)}),
    ("guards", {"limits": Limits(max_frames=1)}),
    ("normalised", {"normalised": False}),
    ("dtype", {"dtype": "float16"}),
    ("dim", {"dim": DIM + 1}),
    ("hashes", {"hashes": True}),
    ("kind", {"columns": Columns(texts=True, keep=("price",), types=("double",))}),
    ("kind", {"columns": Columns(text="caption", keep=("price",), types=("double",))}),
    ("long_text", {"long_text": "fail"}),
    ("keep", {"columns": Columns(keep=("price",), types=("string",))}),
    ("keep", {"columns": Columns(keep=("cost",), types=("double",))}),
    ("delimiter", {"columns": Columns(keep=("price",), types=("double",), delimiter=";", quoting="standard")}),
    ("delimiter", {"columns": Columns(keep=("price",), types=("double",), quoting="standard")}),
    ("quoting", {"columns": Columns(keep=("price",), types=("double",), delimiter=",", quoting="none")}),
    ("quoting", {"columns": Columns(keep=("price",), types=("double",), delimiter=",")}),
    ("shard_size", {"shard_size": 1}),
]


@pytest.mark.parametrize(("key", "changes"), OTHERS)
def test_a_run_is_resumed_only_where_all_that_vectors_depend_on_is_the_same(
    tmp_path: Path, key: str, changes: dict[str, Any]
) -> None:
    StoreWriter(tmp_path, RECORDED).begin(INPUT)
    same = replace(RECORDED, weights_source="there", versions={"numpy": "2"}, device="cuda", root="x", globs=("*",))
    StoreWriter(tmp_path, same).begin(INPUT)
    with pytest.raises(StoreMismatchError, match=f"holds a run whose {key} is .*, expected .* to resume it"):
        StoreWriter(tmp_path, replace(RECORDED, **changes))


def test_each_key_that_vectors_depend_on_is_tested_above_and_is_a_key_of_the_manifest() -> None:
    assert list(dict.fromkeys(key for key, _ in OTHERS)) == list(COMPARED_KEYS)
    assert set(COMPARED_KEYS) <= RECORDED.to_json().keys()


def test_weights_without_a_file_are_known_by_where_they_came_from(tmp_path: Path) -> None:
    StoreWriter(tmp_path, Manifest(dim=DIM, weights_source="untrained:1")).begin(INPUT)
    with pytest.raises(StoreMismatchError, match='weights_source is "untrained:1", expected "untrained:2"'):
        StoreWriter(tmp_path, Manifest(dim=DIM, weights_source="untrained:2"))


def test_a_run_that_is_resumed_keeps_its_parts_and_its_manifest(tmp_path: Path) -> None:
    first = writer(tmp_path, device="first")
    first.commit(Shard(0, [], "fingerprint"), rows(2), vectors(2), failures(1))
    first.commit(Shard(2, [], "fingerprint"), rows(3), vectors(3), [])
    (tmp_path / "embeddings/.part-00001.parquet.99.tmp").write_bytes(b"half")  # as a killed process leaves it
    (tmp_path / "failures/part-00001.parquet").write_bytes(b"its failures were written before")
    before = {name: (tmp_path / name).stat().st_ino for name in files(tmp_path) if "00001" not in name}
    second = writer(tmp_path, device="second")
    assert [second.fingerprint(index) for index in range(4)] == ["fingerprint", None, "fingerprint", None]
    assert second.counts({0, 2}) == (5, 1)
    assert second.manifest.device == "first"
    second.commit(Shard(1, [], "fingerprint"), rows(1), vectors(1), [])
    assert second.counts(range(3)) == (6, 1)
    assert {name: (tmp_path / name).stat().st_ino for name in before} == before
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_a_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.commit(Shard(0, [], "fingerprint"), rows(1), vectors(1), [])
    (tmp_path / "embeddings/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"embeddings/part-00000.parquet: cannot be read .* Remove it"):
        made.counts({0})


def test_overwriting_replaces_our_files_and_leaves_all_others(tmp_path: Path) -> None:
    out = writer(tmp_path, model="first")
    for index in range(3):
        out.commit(Shard(index, [], "fingerprint"), rows(1), vectors(1), failures(1))
    foreign = ["notes.txt", "photos/embeddings/a.jpg", "embeddings.bak/a.parquet"]
    for name in ["_index/vectors.bin", *foreign]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    writer(tmp_path, model="second", overwrite=True).commit(Shard(0, [], "fingerprint"), rows(2), vectors(2), [])
    parts = ["embeddings/part-00000.parquet", "failures/part-00000.parquet"]
    assert files(tmp_path) == sorted([*foreign, *parts, "manifest.json"])
    assert json.loads((tmp_path / "manifest.json").read_text())["model"] == "second"
    assert pq.read_table(tmp_path / "embeddings").num_rows == 2


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["embeddings", "failures", "_index"])
def test_our_folder_names_without_a_manifest_are_somebody_elses_and_never_removed(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").touch()
    with pytest.raises(StoreMismatchError, match=rf"holds '{name}' and no manifest\.json"):
        writer(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == [f"{name}/precious"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_folders_place_is_refused_and_left(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(StoreMismatchError, match="out: is a file"):
        writer(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "precious"


def test_an_existing_folder_with_other_files_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    writer(tmp_path)
    assert files(tmp_path) == ["manifest.json", "notes.txt"]
