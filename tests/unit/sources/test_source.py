"""What of a folder is an image, in which order, under which name; and that nothing is passed over uncounted."""

import os
import socket
import tempfile
import unicodedata
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import formula

from clip.errors import InputError, StoreError
from clip.jobs.options import Limits
from clip.records import Failure, Item, utf8_path
from clip.sources import folders
from clip.sources.folders import split_glob
from clip.sources.folders import walk as walk_folder
from clip.sources.source import Source

PNG = formula.picture(0, 4, 3)


def plant(root: Path, *names: str) -> None:
    """Files, each with its own name as content."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def walk(root: Path, *globs: str) -> tuple[list[Item | Failure], dict[str, int]]:
    ignored: Counter[str] = Counter()
    entries = walk_folder(str(root), [split_glob(glob) for glob in globs], ignored)
    timeless = [entry._replace(modified_ns=0) if isinstance(entry, Item) else entry for entry in entries]
    return timeless, dict(ignored)


def ids(root: Path, *globs: str) -> list[str]:
    return [entry.id for entry in walk(root, *globs)[0]]


def test_ids_are_relative_paths_in_byte_order_and_a_folders_files_come_before_its_folders(tmp_path: Path) -> None:
    expected = ["B.jpg", "a.jpg", "z.jpg", "é.jpg", "a/z.jpg", "a/b/c.jpg", "a/c/a.jpg", "a.d/a.jpg"]
    plant(tmp_path / "one", *expected)
    plant(tmp_path / "two", *reversed(expected))
    order = ["B.jpg", "a.jpg", "z.jpg", "é.jpg", "a/z.jpg", "a/b/c.jpg", "a/c/a.jpg", "a.d/a.jpg"]
    assert ids(tmp_path / "one") == ids(tmp_path / "two") == order


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPG", "a.jPeG", "a.Png", "a.tif", "a.TIFF", "a.webp", "a.avif", "a.b.mpo"]
)
def test_the_extension_of_a_format_we_decode_makes_an_image_in_any_case(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name)
    assert walk(tmp_path) == ([Item(name, str(tmp_path / name), len(name))], {})


@pytest.mark.parametrize("name", ["a.txt", "a.jpg.bak", "a.parquet", "a.eps", "a.PS", "a.wmf", "jpg", "a.jpg~"])
def test_other_extensions_are_ignored_and_counted(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name)
    assert walk(tmp_path) == ([], {"not an image": 1})


def test_without_an_extension_the_content_decides(tmp_path: Path) -> None:
    PNG.save(tmp_path / "png", "png")
    PNG.save(tmp_path / "jpeg", "jpeg")
    plant(tmp_path, "text")
    (tmp_path / "empty").touch()
    (tmp_path / "postscript").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    entries, ignored = walk(tmp_path)
    assert [entry.id for entry in entries] == ["jpeg", "png"]
    assert ignored == {"not an image": 3}


def test_an_extensionless_file_that_cannot_be_sniffed_is_left_to_fail_on_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> bool:
        raise PermissionError(13, "Permission denied", path)

    plant(tmp_path, "locked")
    monkeypatch.setattr(folders, "looks_like_image", refuse)
    assert ids(tmp_path) == ["locked"]


def test_hidden_files_and_whole_hidden_folders_are_ignored(tmp_path: Path) -> None:
    plant(tmp_path, ".a.jpg", ".hidden/a.jpg", ".hidden/sub/b.jpg", "sub/.b.jpg", "sub/c.jpg")
    entries, ignored = walk(tmp_path)
    assert [entry.id for entry in entries] == ["sub/c.jpg"]
    assert ignored == {"hidden": 3}  # a folder counts once: nobody looks into it


def test_links_to_files_are_read_and_links_to_folders_are_ignored_so_that_no_loop_arises(tmp_path: Path) -> None:
    plant(tmp_path, "outside/far.jpg", "root/sub/a.jpg")
    root = tmp_path / "root"
    (root / "near.jpg").symlink_to("sub/a.jpg")
    (root / "far.jpg").symlink_to(tmp_path / "outside/far.jpg")
    (root / "folder.jpg").symlink_to(tmp_path / "outside")
    (root / "sub/up").symlink_to("..")
    entries, ignored = walk(root)
    assert [(entry.id, entry.size_bytes) for entry in entries if isinstance(entry, Item)] == [
        ("far.jpg", len("outside/far.jpg")),
        ("near.jpg", len("root/sub/a.jpg")),
        ("sub/a.jpg", len("root/sub/a.jpg")),
    ]
    assert ignored == {"link to a folder": 2}


@pytest.mark.parametrize(
    "target", ["nowhere.jpg", "a.jpg", "z.jpg", "file.txt/a.jpg", "x" * 300], ids=lambda target: target[:14]
)
def test_a_link_that_leads_nowhere_is_an_image_that_fails_on_reading(tmp_path: Path, target: str) -> None:
    plant(tmp_path, "b.jpg", "file.txt")
    (tmp_path / "a.jpg").symlink_to(target)  # to nothing, to itself, in a circle, through a file, to no name at all
    (tmp_path / "z.jpg").symlink_to("a.jpg")
    source = Source((str(tmp_path),))
    broken, whole, _ = walk_folder(str(tmp_path), [], Counter())
    assert isinstance(broken, Item)
    assert broken == Item("a.jpg", str(tmp_path / "a.jpg"), 0)
    assert whole.id == "b.jpg"
    with pytest.raises(OSError, match=r"a\.jpg"):
        source.read(broken)


def test_pipes_sockets_and_devices_are_ignored_without_being_opened_behind_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "looks_like_image", lambda path: pytest.fail(f"{path} was opened"))
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    os.symlink("pipe", "link.jpg")
    os.symlink(os.devnull, "device.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        assert walk(tmp_path) == ([], {"not a file": 6})


def test_an_image_that_became_a_pipe_since_it_was_listed_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises((InputError, OSError)):
        Source((str(tmp_path),)).read(Item("a.jpg", str(tmp_path / "a.jpg"), 1))


def test_a_file_too_large_to_read_at_once_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(Limits.max_bytes + 1)  # a hole, which takes no room
    source = Source((str(tmp_path),))
    (item,) = walk_folder(str(tmp_path), [], Counter())
    assert isinstance(item, Item)
    assert item.size_bytes == Limits.max_bytes + 1
    with pytest.raises(InputError, match=r"2,147,483,648 bytes, expected at most 2,147,483,647"):
        source.read(item)


@pytest.mark.parametrize(("locked", "expected"), [("locked/", ["a.jpg", "locked/", "open/b.jpg"]), ("", ["."])])
def test_a_folder_that_cannot_be_listed_becomes_a_failure_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, expected: list[str]
) -> None:
    plant(tmp_path, "a.jpg", "locked/a.jpg", "open/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path == os.path.join(tmp_path, locked):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    entries, ignored = walk(tmp_path)
    assert [entry.id for entry in entries] == expected
    (failure,) = [entry for entry in entries if isinstance(entry, Failure)]
    assert (failure.stage, failure.error, ignored) == ("read", "PermissionError", {})
    assert failure.path == os.path.join(tmp_path, locked)
    assert "Permission denied" in failure.message


GLOB_TREE = (
    "a.jpg",
    "b.txt",
    "x1.png",
    "[1].jpg",
    "sub/a.jpg",
    "sub/c.png",
    "sub/deep/d.jpg",
    "sub/.h.jpg",
    "sub^d.jpg",
)


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("*.jpg",), "[1].jpg a.jpg sub^d.jpg sub/a.jpg sub/deep/d.jpg"),  # without a slash: a name, wherever it is
        (("*.JPG",), ""),
        (("b.txt",), "b.txt"),  # a glob takes what has no image's extension
        (("sub/*",), "sub/a.jpg sub/c.png"),  # * stays inside a name, and hidden files stay hidden
        (("*/a.jpg",), "sub/a.jpg"),
        (("/a.jpg",), ""),
        (("sub/**",), "sub/a.jpg sub/c.png sub/deep/d.jpg"),
        (("**",), "[1].jpg a.jpg b.txt sub^d.jpg x1.png sub/a.jpg sub/c.png sub/deep/d.jpg"),
        (("**/d.jpg",), "sub/deep/d.jpg"),
        (("**/a.jpg",), "a.jpg sub/a.jpg"),
        (("sub/**/d.jpg", "x*"), "x1.png sub/deep/d.jpg"),  # any of several
        (("sub/**/a.jpg",), "sub/a.jpg"),
        (("?.jpg",), "a.jpg sub/a.jpg sub/deep/d.jpg"),
        (("sub?a.jpg",), ""),
        (("sub?d.jpg",), "sub^d.jpg"),
        (("[ab].*",), "a.jpg b.txt sub/a.jpg"),
        (("[a-c].*",), "a.jpg b.txt sub/a.jpg sub/c.png"),
        (("[!ac].jpg",), "sub/deep/d.jpg"),
        (("sub[!x]?.jpg",), "sub^d.jpg"),  # [!x] is no slash either
        (("sub[^]d.jpg",), "sub^d.jpg"),
        (("[[]1].jpg",), "[1].jpg"),  # how a bracket is escaped
        (("[[]1[]].jpg",), "[1].jpg"),
        (("[1].jpg",), ""),
        (("[z-a]*",), ""),  # what means nothing matches nothing
        (("[!]*",), ""),
        (("a.jp[g",), ""),
        (("a+.jpg",), ""),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_globs_take_the_files_they_match_and_no_others(tmp_path: Path, globs: tuple[str, ...], expected: str) -> None:
    plant(tmp_path, *GLOB_TREE)
    entries, ignored = walk(tmp_path, *globs)
    assert [entry.id for entry in entries] == expected.split()
    assert len(entries) + ignored.get("not an image", 0) == len(GLOB_TREE) - 1


@pytest.mark.parametrize(
    ("size", "limit", "sizes"),
    [
        (2, None, [2, 2, 1]),
        (5, None, [5]),
        (9, None, [5]),
        (1, 3, [1, 1, 1]),
        (2, 4, [2, 2]),
        (2, 3, [2, 1]),
        (3, 9, [3, 2]),
    ],
)
def test_shards_are_full_but_for_the_last_and_hold_the_walk_in_order(
    tmp_path: Path, size: int, limit: int | None, sizes: list[int]
) -> None:
    plant(tmp_path, *(f"{n}.jpg" for n in range(5)), "x.txt")
    source = Source((str(tmp_path),))
    shards = list(source.shards(size, Counter(), limit))
    assert [shard.index for shard in shards] == list(range(len(sizes)))
    assert [len(shard.entries) for shard in shards] == sizes
    assert (
        list(chain.from_iterable(shard.entries for shard in shards))
        == list(walk_folder(str(tmp_path), [], Counter()))[:limit]
    )


def test_a_folder_without_images_has_no_shards(tmp_path: Path) -> None:
    plant(tmp_path, "x.txt")
    ignored: Counter[str] = Counter()
    with pytest.raises(InputError, match="nothing but 1 not an image, expected images"):
        list(Source((str(tmp_path),)).shards(3, ignored))
    assert ignored == {"not an image": 1}


def test_each_hostile_name_has_an_id_of_its_own_and_its_own_bytes(tmp_path: Path) -> None:
    names = [
        "new\nline.jpg",
        "tab\t\x1b[31m.jpg",
        os.fsdecode(b"\xff.jpg"),
        "\\xff.jpg",
        "\\\\xff.jpg",
        os.fsdecode(b"\xed\xa0\x80.jpg"),  # half a surrogate pair in UTF-8 form
        "n" * 251 + ".jpg",
        unicodedata.normalize("NFC", "é.jpg"),
        unicodedata.normalize("NFD", "é.jpg"),
        "case.jpg",
        "Case.jpg",
        " .jpg",
        os.fsdecode(b"folder \xe9/a.jpg"),
    ]
    plant(tmp_path, *names)
    source = Source((str(tmp_path),))
    items = [entry for entry in walk_folder(str(tmp_path), [], Counter()) if isinstance(entry, Item)]
    assert sorted(source.read(item) for item in items) == sorted(map(os.fsencode, names))
    assert all(item.id == utf8_path(os.fsdecode(source.read(item))) for item in items)
    assert len({item.id.encode("utf-8") for item in items}) == len(names)


collision_prone = st.lists(st.sampled_from([b"\\", b"x", b"f", b"5c", b"\xff", b"\xc3", b"\xa9"]), max_size=6).map(
    b"".join
)


@given(st.lists(st.binary(max_size=8) | collision_prone, unique=True))
@example([b"\xff", b"\\xff", b"\\\\xff", b"\\\xff"])
def test_distinct_names_have_distinct_ids_in_valid_utf8(names: list[bytes]) -> None:
    assert len({utf8_path(os.fsdecode(name)).encode("utf-8") for name in names}) == len(names)


def test_the_root_may_be_a_link_and_has_no_part_in_the_ids(tmp_path: Path) -> None:
    plant(tmp_path, "root/sub/a.jpg")
    (tmp_path / "link").symlink_to("root")
    assert ids(tmp_path / "link") == ids(tmp_path / "root") == ["sub/a.jpg"]
    (item,) = walk(tmp_path / "link")[0]
    assert item.path == str(tmp_path / "link/sub/a.jpg")


@pytest.mark.parametrize("root", ["missing", "file.pdf", "file.jpg/below", "broken"])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, root: str) -> None:
    plant(tmp_path, "file.jpg", "file.pdf")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"{root}: (no such file|nothing that we read), expected a folder"):
        Source((str(tmp_path / root),))


def test_an_item_says_when_its_file_changed(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1, 123_456_789_000_000_007))
    (item,) = walk_folder(str(tmp_path), [], Counter())
    assert isinstance(item, Item)
    assert item.modified_ns == (tmp_path / "a.jpg").stat().st_mtime_ns
    assert item.modified_ns // 10**6 == 123_456_789_000  # file systems differ in what they keep below


MANY = [f"{n:03}.jpg" for n in range(40)] + ["new\nline.jpg", "f0/a.jpg", "f0/b.jpg", "f1/a\n.jpg", "f2\n/a.jpg"]


def test_names_of_a_large_folder_are_sorted_on_the_disk_and_come_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "root", *MANY, ".hidden", *(f"g{n:02}/a.jpg" for n in range(15)))
    in_memory = walk(tmp_path / "root")
    spilled: list[int] = []
    spill = folders._spill

    def counted(records: list[bytes], scratch: Path | None) -> Any:
        spilled.append(len(records))
        return spill(records, scratch)

    monkeypatch.setattr(folders, "_spill", counted)
    monkeypatch.setattr(folders, "SORTED_IN_MEMORY", 7)
    assert walk(tmp_path / "root") == in_memory
    assert len(in_memory[0]) == len(MANY) + 15
    assert spilled == [7] * 8, "59 names in the root, two in a folder"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert len(list(walk_folder(str(tmp_path / "root"), [], Counter(), scratch=scratch))) == len(MANY) + 15
    assert not any(scratch.iterdir()), "the files have no name, so that a kill leaves none"
    with pytest.raises(StoreError, match="gone: cannot be written"):
        list(walk_folder(str(tmp_path / "root"), [], Counter(), scratch=tmp_path / "gone"))


def test_what_an_earlier_walk_found_is_not_requested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, *MANY)

    def again(known: Any = ()) -> list[Item | Failure]:
        return list(walk_folder(str(tmp_path), [], Counter(), known))

    before = [entry for entry in again() if isinstance(entry, Item)]
    plant(tmp_path, "000.new.jpg", "f1/new.jpg", "f9/new.jpg")
    (tmp_path / "020.jpg").unlink()
    asked: list[str] = []
    status = folders.stat_here

    def counted(path: str) -> tuple[int, int]:
        asked.append(os.path.relpath(path, tmp_path))
        return status(path)

    fresh = again()
    monkeypatch.setattr(folders, "stat_here", counted)
    assert again(before[:-2]) == fresh
    assert asked == ["000.new.jpg", "f1/a\n.jpg", "f1/new.jpg", "f2\n/a.jpg", "f9/new.jpg"]
    moved = [item._replace(size_bytes=5, modified_ns=7, path="elsewhere") for item in before]
    item = again(moved)[0]
    assert item == Item("000.jpg", str(tmp_path / "000.jpg"), 5, 7), "sizes and times are believed, paths are not"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*MANY, "zz.jpg", "f0/\\x.jpg", "f0/é.jpg"]), unique=True), st.data())
def test_any_earlier_walk_will_do(names: list[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder), *names)
        fresh = list(walk_folder(folder, [], Counter()))
        known = data.draw(st.lists(st.sampled_from(fresh), unique=True)) if fresh else []
        items = [entry for entry in known if isinstance(entry, Item)]
        assert list(walk_folder(folder, [], Counter(), items)) == fresh


entry_names = st.sampled_from(["a.jpg", "b.PNG", "c.txt", "d", ".e.jpg", "f.d", "g.eps", "h\n.gif"])
files = st.sampled_from(["image", "text", "link to a file", "link to a folder", "link to nothing", "pipe"])
trees = st.recursive(
    st.dictionaries(entry_names, files), lambda below: st.dictionaries(entry_names, files | below), max_leaves=12
)


def grow(folder: Path, tree: dict[str, Any], image: Path) -> None:
    folder.mkdir()
    for name, kind in tree.items():
        path = folder / name
        if isinstance(kind, dict):
            grow(path, kind, image)
        elif kind == "image":
            os.link(image, path)
        elif kind == "text":
            path.write_text("no image")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"link to a file": image, "link to a folder": image.parent}.get(kind, "nowhere"))


@settings(deadline=None, max_examples=60)
@given(trees)
def test_whatever_is_in_a_tree_is_an_image_or_counted_as_ignored(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, image = Path(folder, "root"), Path(folder, "image.png")
        PNG.save(image)
        grow(root, tree, image)
        entries, ignored = walk(root)
        seen = 0
        for folder_path, folders, names in os.walk(root):
            passed_over = [name for name in folders if name.startswith(".") or Path(folder_path, name).is_symlink()]
            seen += len(names) + len(passed_over)
            folders[:] = [name for name in folders if name not in passed_over]
        assert len(entries) + sum(ignored.values()) == seen
        assert len({entry.id for entry in entries}) == len(entries)
        for entry in entries:
            assert isinstance(entry, Item)
            assert (root / entry.id).suffix.lower() in (".jpg", ".png", ".gif", "")
            assert not (root / entry.id).is_dir()
            assert not (root / entry.id).is_fifo()
