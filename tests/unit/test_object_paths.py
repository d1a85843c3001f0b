"""Paths on object stores do what paths of this machine do, whole or not at all, whatever the server answers."""

from pathlib import Path

import pytest
from kit.object_store import BUCKET, ObjectServer

from clip import object_paths
from clip.atomic_files import atomic_write, move_folder, open_regular, read_regular, remove_folder
from clip.errors import StoreUnreachableError
from clip.object_paths import ObjectPath, is_object_url, open_place

DATA = bytes(range(256)) * 1000


@pytest.fixture
def out(objects: ObjectServer) -> Path:
    assert objects.list() == []
    return open_place(f"s3://{BUCKET}/a/out/")


def write(path: Path, data: bytes = DATA) -> None:
    with atomic_write(path) as file:
        file.write(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_listed_and_read_at_any_place(out: Path) -> None:
    assert not out.exists()
    write(out / "folder" / "one.bin")
    write(out / "folder" / "two #%?.bin", b"")
    assert out.is_dir()
    assert names(out) == ["folder"]
    assert names(out / "folder") == ["one.bin", "two #%?.bin"]
    assert not (out / "fold").exists(), "a folder is no beginning of a name"
    assert [path.stat().st_size for path in sorted((out / "folder").iterdir())] == [len(DATA), 0]
    with open_regular(out / "folder" / "one.bin") as file:
        assert file.read(5) == DATA[:5]
        file.seek(-7, 2)
        assert file.read() == DATA[-7:]
        file.seek(1000)
        assert file.read(100_000) == DATA[1000:101_000]
        file.seek(0)
        assert file.read() == DATA
    assert read_regular(out / "folder" / "two #%?.bin", 0) == b""


def test_an_object_that_was_replaced_has_another_time(out: Path) -> None:
    write(out / "one", b"1")
    first = (out / "one").stat().st_mtime_ns
    write(out / "one", b"2")
    assert (out / "one").stat().st_mtime_ns != first


def test_what_is_not_there_is_a_missing_file(out: Path) -> None:
    for look in (lambda path: path.stat(), open_regular, lambda path: read_regular(path, 1)):
        with pytest.raises(FileNotFoundError) as error:
            look(out / "none")
        assert error.value.errno == 2
    assert not (out / "none").is_file()


def test_nothing_is_written_to_a_folder_that_is_named_like_a_server(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="no path of this machine"):
        (out / "one").open("w")
    with pytest.raises(TypeError, match="no path of this machine"):
        out.resolve()
    (out / "folder").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_only_names_of_buckets_are_on_a_server(tmp_path: Path) -> None:
    assert [is_object_url(name) for name in ("s3://b", "gs://b/o", "az://c/o/")] == [True] * 3
    assert [is_object_url(name) for name in ("s3://", "s3:/b", "/s3://b", "https://b/o", tmp_path)] == [False] * 5
    assert type(open_place(str(tmp_path))) is type(tmp_path)


@pytest.mark.parametrize("words", [["500"], ["503"] * 3, ["silence"], ["lost"], ["503", "lost"]], ids="+".join)
def test_a_put_that_fails_is_repeated_and_the_object_is_whole(
    words: list[str], out: Path, objects: ObjectServer
) -> None:
    objects.fail("PUT .*", *words)
    write(out / "one")
    assert objects.read("a/out/one") == DATA
    assert objects.list() == ["a/out/one"]


@pytest.mark.parametrize("word", ["500", "503", "silence", "lost"])
def test_reading_is_repeated(word: str, out: Path, objects: ObjectServer) -> None:
    write(out / "one")
    objects.fail("(GET|HEAD) .*", word, "", word)
    with open_regular(out / "one") as file:
        assert file.read() == DATA
    objects.fail("GET .*", word)
    assert names(out) == ["one"]


def test_a_server_that_keeps_failing_is_named_and_nothing_is_there(out: Path, objects: ObjectServer) -> None:
    objects.fail("PUT .*", *["503"] * 100)
    with pytest.raises(StoreUnreachableError, match=r"^s3://bucket/a/out/one: .* answered 503 .*, SlowDown"):
        write(out / "one")
    assert objects.list() == []


@pytest.mark.usefixtures("objects")
def test_a_bucket_that_is_not_there_is_named() -> None:
    with pytest.raises(StoreUnreachableError, match="404 Not Found, NoSuchBucket"):
        open_place("s3://another/out").is_dir()


def test_a_large_file_is_sent_in_pieces_and_appears_whole(
    out: Path, objects: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_paths, "WHOLE_BYTES", 5 * 2**20)
    data = DATA * 48  # 12 MB
    objects.fail("PUT .*", "503", "lost")
    write(out / "one", data)
    assert objects.read("a/out/one") == data
    with open_regular(out / "one") as file:
        assert file.read() == data


def test_after_an_error_there_is_nothing(out: Path, objects: ObjectServer) -> None:
    with pytest.raises(KeyError), atomic_write(out / "one") as file:
        file.write(DATA)
        raise KeyError
    assert objects.requests[-1].startswith("PUT /bucket"), "that of the bucket alone"
    assert objects.list() == []


def test_an_object_that_changes_while_it_is_read_is_no_mixture(out: Path) -> None:
    write(out / "one", DATA * 8)
    with open_regular(out / "one") as file:
        file.read(10)
        write(out / "one", DATA[::-1] * 8)
        with pytest.raises(OSError, match="changed while it was read"):
            file.read()


def test_of_two_puts_under_a_condition_one_holds(out: Path, objects: ObjectServer) -> None:
    path = open_place(str(out / "one"))
    assert isinstance(path, ObjectPath)
    first = path.put_if(b"1", None)
    assert first
    assert path.put_if(b"2", None) is None
    second = path.put_if(b"3", first)
    assert second
    assert path.put_if(b"4", first) is None
    assert path.read_object(1) == (b"3", second)
    path.unlink()
    assert path.put_if(b"5", second) is None, "a version that is gone"
    assert objects.list() == []


@pytest.mark.parametrize("failing", range(7))
def test_a_move_that_is_cut_short_leaves_one_folder_with_its_seal(
    failing: int, out: Path, objects: ObjectServer
) -> None:
    """What lies under the seal is whole: in the old place, or in the new one."""
    for name in ("plan.json", "shard-0", "shard-1", "after"):
        write(out / "new" / name, name.encode())
    objects.fail("(PUT|POST|DELETE) .*", *[""] * failing, *["500"] * 100)
    done = False
    try:
        move_folder(out / "new", out / "old", "plan.json")
        done = True
    except StoreUnreachableError:
        pass
    objects.scripts.clear()
    whole = {"after", "plan.json", "shard-0", "shard-1"}
    sealed = [set(names(out / folder)) for folder in ("new", "old") if (out / folder / "plan.json").exists()]
    assert sealed
    assert all(found == whole for found in sealed)
    assert not done or names(out) == ["old"]
    remove_folder(out)
    assert objects.list() == []
