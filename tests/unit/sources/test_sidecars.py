"""Captions and metadata beside images: the same columns from a folder, a tar and a zip; nothing is missed silently."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit import checkpoints, formula
from kit.jobs import embed_job

import clip
from clip.batch.verify import verify
from clip.errors import InputError, StoreError
from clip.jobs.options import Columns
from clip.jobs.verify import VerifyJob
from clip.records import ContainerPart, Failure, Item, Member
from clip.sources import samples
from clip.sources.source import Source


def make_png(number: int) -> bytes:
    buffer = io.BytesIO()
    formula.picture(number, 8, 6).save(buffer, "PNG")
    return buffer.getvalue()


PNG = make_png(0)
META = {"url": "http://h/é", "width": 640, "key": "own", "tags": ["a"], "said": "from json"}
# What an image may have beside it: the content of .txt and .json.
BESIDE: dict[str, tuple[bytes | None, bytes | None]] = {
    "both": (b"a red boat\n", json.dumps(META).encode()),
    "text": ("\ufeffé\r\n".encode(), None),
    "json": (None, json.dumps(META).encode()),
    "none": (None, None),
    "broken": (b"x", b'{"url": '),
    "list": (b"x", b"[1]"),
    "latin": (b"caf\xe9", b'{"url": "\xe9"}'),
    "empty": (b"", b"{}"),
}
FILES = {
    f"s/{key}.{ending}": data
    for key, beside in BESIDE.items()
    for ending, data in (("png", PNG), ("txt", beside[0]), ("json", beside[1]))
    if data is not None
}


def write(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    pairs = list(files.items()) if isinstance(files, dict) else files
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, data in pairs:
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in pairs:
                archive.writestr(name, data)
    else:
        for name, data in pairs:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def outcomes(path: Path, **columns: Any) -> dict[str, Any]:
    """By name: the values of each image, or the message of a failure."""
    source = Source((str(path),), columns=Columns(**columns))
    found: list[Any] = []
    for shard in source.shards(5, Counter()):
        for entry in shard.entries:
            is_part = isinstance(entry, ContainerPart)
            ignored: Counter[str] = Counter()
            members = list(source.members(entry, 10**6, ignored)) if is_part else [entry]
            if is_part and entry.members is not None:
                assert len(members) + ignored.total() == entry.members
            found += members
    told: dict[str, Any] = {}
    for one in found:
        item = one.item if isinstance(one, Member) else one
        name = one.id.partition("!")[2] if path.is_file() and "!" in one.id else one.id
        assert name not in told
        told[name] = item.values if isinstance(item, Item) else item.message
    return told


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.zip"])
def test_columns_are_the_files_beside_an_image_and_the_fields_of_its_object(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / form, FILES)
    found = outcomes(path, text="txt", keep=("url", "width", "key", "tags", "gone"))
    assert set(found) == {f"s/{key}.png" for key in BESIDE}
    fields = ("http://h/é", "640", "both", '["a"]', None)
    assert found["s/both.png"] == ("a red boat", *fields)
    assert found["s/json.png"] == (None, *fields[:2], "json", *fields[3:]), (
        "whose text is missing, so that the pair becomes a failure"
    )
    assert found["s/text.png"] == ("é", None, None, "text", None, None)
    assert found["s/none.png"] == (None, None, None, "none", None, None)
    assert found["s/empty.png"] == ("", None, None, "empty", None, None)
    assert found["s/broken.png"].startswith("the .json beside it is not JSON (")
    assert found["s/latin.png"].startswith("the .json beside it is not JSON (")
    assert found["s/list.png"] == (
        "the .json beside it is list, expected an object. Repair it, or leave out the columns that are in it."
    )
    texts = outcomes(path, text="txt")
    assert texts["s/broken.png"] == ("x",), "nobody asked for what is broken"
    assert texts["s/latin.png"] == ("caf\udce9",), "which becomes a failure when it is read as a text"
    assert outcomes(path, text="said")["s/both.png"] == ("from json",)
    assert outcomes(path, keep=("json",))["s/both.png"] == (json.dumps(META),)


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.zip"])
def test_a_sample_of_several_images_shares_what_is_beside_its_key(tmp_path: Path, form: str) -> None:
    files = {"7.left.png": PNG, "7.right.png": PNG, "7.right.txt": b"right", "7.txt": b"both"}
    found = outcomes(write(tmp_path / form, files), text="txt")
    assert found == {"7.left.png": ("both",), "7.right.png": ("right",)}


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.zip"])
def test_pairs_are_embedded_counted_and_verified_as_from_a_table(tmp_path: Path, text_weights: Path, form: str) -> None:
    files = {name: data for number in range(6) for name, data in (
        (f"{number}.png", make_png(number)),
        (f"{number}.txt", f"image {number}".encode()),
        (f"{number}.json", json.dumps({"url": f"u{number}", "width": number}).encode()),
    )}  # fmt: skip
    del files["2.txt"]
    files["4.json"] = b"{"
    path = write(tmp_path / form, files)
    out = tmp_path / "out"
    job = embed_job(
        source=path,
        output=out,
        model=str(text_weights),
        threads=1,
        shard_size=4,
        text_column="txt",
        keep=("url", "width"),
    )
    report = clip.embed(job)
    assert (report.read, report.written, report.failed) == (6, 4, 2)
    rows = pq.read_table(out / "embeddings").to_pylist()
    assert [(row["text"], row["url"], row["kept_width"], row["width"]) for row in rows] == [
        (f"image {n}", f"u{n}", str(n), 8) for n in (0, 1, 3, 5)
    ]
    assert [row["message"][:20] for row in pq.read_table(out / "failures").to_pylist()] == [
        "its row has no text.",
        "the .json beside it ",
    ]
    checked = verify(VerifyJob(output=out, sample=6))
    assert (checked.problems, checked.read) == ((), 6)
    assert clip.embed(job).resumed == 6


def test_in_a_tar_what_stands_apart_from_its_image_is_never_missed_silently(tmp_path: Path) -> None:
    pairs = [("a.png", PNG), ("b.txt", b"b"), ("c.png", PNG), ("c.txt", b"c"), ("a.txt", b"a"), ("b.png", PNG)]
    pairs += [("README.txt", b"stray"), ("c.png", PNG), ("c.txt", b"another c")]
    apart = (
        "stands apart from the other files of its key, expected all of a key together, as in WebDataset. "
        "Write the archive sorted by name."
    )
    assert outcomes(write(tmp_path / "a.tar", pairs), keep=("txt",)) == {
        "a.png": (None,),
        "c.png": ("c",),
        "a.txt": apart,
        "b.png": apart,
        "c.png~2": ("another c",),
    }
    hidden = [("a.png", PNG), ("._a.txt", b"x"), ("a.txt", b"a")]  # as macOS writes them between
    assert outcomes(write(tmp_path / "b.tar", hidden), keep=("txt",)) == {"a.png": ("a",)}


def test_a_tar_that_is_cut_in_a_sample_gives_no_image_without_what_stood_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.png", PNG), ("a.txt", b"a"), ("b.png", PNG), ("b.txt", b"b" * 600)])
    whole = path.read_bytes()
    place = whole.index(b"b" * 600) + 100
    path.write_bytes(whole[:place])
    found = outcomes(path, keep=("txt",))
    assert found["a.png"] == ("a",)
    assert found["b.png"].startswith("cannot be read (it is cut before what stands beside the image)")
    assert set(found) == {"a.png", "b.png", "a.tar"}, "the last stands for the rest"


def test_a_zip_without_its_list_gives_no_image_without_what_is_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.png": PNG, "a.txt": b"a"})
    path.write_bytes(path.read_bytes()[:-30])
    assert outcomes(path, keep=("txt",))["a.png"].startswith(
        "what is beside it is not known, as the archive's list is gone"
    )


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.zip"])
def test_what_is_too_large_is_a_failure_and_is_not_read(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("samples", "zip", "source"):
        monkeypatch.setattr(f"clip.sources.{module}.MAX_BYTES", 100)
    found = outcomes(write(tmp_path / form, {"a.png": PNG, "a.txt": b"x" * 101}), keep=("txt",))
    assert "101 bytes" in found["a.png"] or "more than 100 bytes" in found["a.png"]


def test_a_sample_is_held_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "HELD_BYTES", 2 * len(PNG) + 5)
    files = {"7.a.png": PNG, "7.b.png": PNG, "7.c.png": PNG, "7.txt": b"x", "8.png": PNG, "8.txt": b"y"}
    found = outcomes(write(tmp_path / "a.tar", files), keep=("txt",))
    assert (found["7.a.png"], found["7.b.png"], found["8.png"]) == (("x",), ("x",), ("y",))
    assert found["7.c.png"].startswith("its sample holds more than")


def test_where_nothing_is_beside_any_image_the_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "photos", {"a.png": PNG, "b.png": PNG})
    with pytest.raises(
        InputError, match=r"found neither a list nor a table, expected column 'url' in one, or in a \.txt"
    ):
        outcomes(path, keep=("url",))
    assert outcomes(path, keep=("key",)) == {"a.png": ("a",), "b.png": ("b",)}
    (path / "b.txt").mkdir()
    (path / "a.json").write_text('{"url": "u"}')
    assert outcomes(path, keep=("url",)) == {"a.png": ("u",), "b.png": (None,)}
    assert isinstance(outcomes(path, keep=("txt", "url"))["b.png"], str), "a folder in the place of a text"


def test_what_changes_beside_an_image_is_embedded_again_by_an_update(tmp_path: Path) -> None:
    weights = checkpoints.write(tmp_path, texts=False)
    path = write(tmp_path / "photos", {"a.png": PNG, "a.txt": b"one", "b.png": PNG, "b.txt": b"two"})
    choices: dict[str, Any] = {"source": path, "output": tmp_path / "out", "model": str(weights), "threads": 1}
    clip.embed(embed_job(**choices, keep=("txt",)))
    (path / "b.txt").write_text("three")
    report = clip.embed(embed_job(**choices, keep=("txt",), update=True))
    assert (report.read, report.resumed) == (2, 1)
    assert pq.read_table(tmp_path / "out/embeddings")["txt"].to_pylist() == ["one", "three"]


def test_failures_of_what_is_beside_an_image_are_of_the_image(tmp_path: Path) -> None:
    path = write(tmp_path / "photos", {"a.png": PNG, "a.json": b"{", "b.png": PNG, "b.json": b"{}"})
    source = Source((str(path),), columns=Columns(keep=("url",)))
    (failure, item) = [entry for shard in source.shards(5, Counter()) for entry in shard.entries]
    assert isinstance(failure, Failure)
    assert (failure.id, failure.path, failure.stage) == ("a.png", str(path / "a.png"), "read")
    assert isinstance(item, Item)


@pytest.mark.parametrize("form", ["folder", "a.tar", "a.zip"])
def test_ids_are_keys_or_fields_beside_an_image_and_an_image_without_one_is_a_failure(
    tmp_path: Path, form: str
) -> None:
    files = {
        "s/1.png": PNG,
        "s/1.json": b'{"uid": "\xc3\xa9\\\\", "n": 7}',
        "s/2.png": PNG,
        "s/2.json": b'{"uid": ""}',
        "3.png": PNG,
        "4.png": PNG,
        "4.json": b'{"uid": 4}',
        "4.txt": b"four",
        "5.png": PNG,
        "5.json": b'{"uid": true}',
    }
    path = write(tmp_path / form, files)
    assert outcomes(path, id="key") == {"1": (), "2": (), "3": (), "4": (), "5": ()}
    given = outcomes(path, id="uid", text="txt", keep=("n", "key"))
    assert given["é\\\\"] == (None, "7", "1"), "a backslash is doubled, as in every id"
    assert given["4"] == ("four", None, "4")
    expected = "expected an id, a text or a whole number. Leave it out, or name another column."
    assert given["s/2.png"] == f"has \"\" as its 'uid', {expected}"
    assert given["3.png"] == f"has null as its 'uid', {expected}"
    assert given["5.png"] == f"has true as its 'uid', {expected}"
    assert len(given) == 5


@pytest.mark.parametrize("form", ["a.tar", "a.zip"])
def test_an_id_that_an_image_of_the_archive_has_is_a_failure(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / form, {"7.left.png": PNG, "7.right.png": PNG, "7.txt": b"both", "8.png": PNG})
    found = outcomes(path, id="key", keep=("txt",))
    assert {"7", "8", "7.right.png"} == found.keys()
    assert found["7.right.png"].startswith(
        "has '7' as its 'key', as another image of the archive has, expected one image for each id."
    )


def test_a_zip_without_its_list_still_tells_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG})
    path.write_bytes(path.read_bytes()[:-30])
    assert {"a", "b"} < outcomes(path, id="key").keys()


def test_keys_that_several_archives_have_are_refused_or_kept_and_nothing_is_embedded_again(
    tmp_path: Path, text_weights: Path
) -> None:
    for name in ("a.tar", "b.tar"):
        write(tmp_path / name, {"0001.png": make_png(1), f"{name}.png": make_png(2)})
    options: dict[str, Any] = {
        "source": [tmp_path / "a.tar", tmp_path / "b.tar"],
        "output": tmp_path / "out",
        "model": str(text_weights),
        "threads": 1,
        "id_column": "key",
    }
    with pytest.raises(StoreError, match=r"two images have the id '0001', in part-00000.parquet and part-00001.parque"):
        clip.embed(embed_job(**options))
    report = clip.embed(embed_job(**options, duplicate_ids="keep"))
    assert (report.read, report.resumed) == (4, 4)
    ids = pq.read_table(tmp_path / "out/embeddings")["id"].to_pylist()
    assert ids == ["0001", "a", "0001", "b"]
    (tmp_path / "folder").mkdir()
    for name in ("c", "d"):
        write(tmp_path / "folder", {f"{name}/1.png": PNG})
    with pytest.raises(InputError, match=r"'1': found as the id of .*c/1.png and of .*d/1.png"):
        clip.embed(embed_job(**{**options, "source": tmp_path / "folder", "output": tmp_path / "out2"}))


def test_files_chosen_by_a_pattern_have_their_ids_from_where_they_are(tmp_path: Path) -> None:
    write(tmp_path / "all", {"1.png": PNG, "1.json": b'{"path": "one"}', "2.csv": b"path,id\n1.png,of the list\n"})
    write(tmp_path / "all/3.tar", {"3.png": PNG, "3.json": b'{"path": "three"}'})
    source = Source((str(tmp_path / "all"),), ("*.png", "*.csv", "*.tar"), Columns(id="path"), str(tmp_path / "all"))
    entries = [entry for shard in source.shards(5, Counter()) for entry in shard.entries]
    assert [entry.id for entry in entries] == ["one", "1.png", "3.tar"]
    assert [one.id for one in source.members(entries[2], 10**6, Counter())] == ["three"]  # type: ignore[arg-type]  # pyright: ignore


@pytest.mark.parametrize("form", ["folder", "a.tar"])
def test_a_copied_column_that_no_image_has_is_named_at_the_end(tmp_path: Path, text_weights: Path, form: str) -> None:
    files = {"1.png": make_png(1), "1.json": b'{"url": "u"}', "2.png": make_png(2), "2.json": b'{"n": 0}'}
    path = write(tmp_path / form, files)
    options: dict[str, Any] = {
        "source": path,
        "output": tmp_path / "out",
        "model": str(text_weights),
        "threads": 1,
        "shard_size": 1,
        "keep": ("url", "n", "ulr", "width"),
    }
    told = tuple(
        f"no row has a value in column '{name}' of `columns.keep`; check its name" for name in ("ulr", "width")
    )
    assert clip.embed(embed_job(**options)).advice == told
    assert clip.embed(embed_job(**options)).advice == told, "of a run that did nothing"


def test_on_a_server_files_beside_images_are_refused_and_archives_and_keys_are_not(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name, data in {"a.png": PNG, "a.txt": b"text", "b.png": PNG}.items():
        memory.pipe(f"/beside/{name}", data)
    memory.pipe("/beside.tar", write(tmp_path / "a.tar", {"a.png": PNG, "a.txt": b"text"}).read_bytes())

    def entries(name: str, **columns: Any) -> list[Any]:
        source = Source((name,), columns=Columns(**columns))
        return [entry for shard in source.shards(5, Counter()) for entry in shard.entries]

    for columns in ({"text": "txt"}, {"keep": ("key", "url")}, {"id": "uid"}):
        for name in ("memory://beside/", "memory://beside/*.png", "memory://beside/a.png"):
            with pytest.raises(InputError, match=r"is on a server, where no files beside an image .* Pack the images"):
                entries(name, **columns)
    assert [(one.id, one.values) for one in entries("memory://beside/", id="key", keep=("key",))] == [
        ("a", ("a",)),
        ("b", ("b",)),
    ]
    [part] = entries("memory://beside.tar", text="txt", id="key")
    source = Source(("memory://beside.tar",), columns=Columns(text="txt", id="key"))
    assert [(one.item.id, one.item.values) for one in source.members(part, 10**6, Counter())] == [("a", ("text",))]  # type: ignore[union-attr]  # pyright: ignore
