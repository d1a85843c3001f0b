"""The base of inputs: the folder to which ids and paths are relative."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.inputs import draw_photos

from clip.jobs.options import Columns
from clip.records import Item, join_root, shorten
from clip.sources.base import find_common, make_relative, resolve
from clip.sources.source import Source


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, an archive and lists of them; the current folder."""
    for name in ("photos", "photos/sub", "more"):
        draw_photos(tmp_path / name, ["a.png"])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/x.txt").write_text("photos/a.png\n/abs/b.png\ns3://b/c.png\n")
    (tmp_path / "lists/y.csv").write_text("path\nphotos/a.png\n")
    pq.write_table(pa.table({"path": ["photos/a.png"]}), tmp_path / "lists/names.parquet")
    pq.write_table(pa.table({"image": [(tmp_path / "photos/a.png").read_bytes()]}), tmp_path / "lists/images.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def list_entries(*inputs: str, **choices: Any) -> tuple[str, list[tuple[str, str]]]:
    """The base, below the current folder, and ids and paths of the entries."""
    source = Source(inputs, **choices).with_base()
    entries = list(source.entries(100, Counter()))
    for entry in entries:
        if isinstance(entry, Item) and "://" not in entry.path and "abs" not in entry.path:
            assert os.path.isfile(source.locate(entry.path))
            assert entry.size_bytes > 0
    return make_relative(source.base or "", os.getcwd()), [(entry.id, entry.path) for entry in entries]


PHOTOS = [("a.png", "a.png"), ("sub/a.png", "sub/a.png")]
LINES = [("photos/a.png", "photos/a.png"), ("/abs/b.png", "/abs/b.png"), ("s3://b/c.png", "s3://b/c.png")]
BOTH = [("photos/a.png", "photos/a.png"), ("photos/sub/a.png", "photos/sub/a.png")]


@pytest.mark.parametrize(
    ("inputs", "base", "entries"),
    [
        (["photos"], "photos", PHOTOS),
        (["./photos/"], "photos", PHOTOS),
        (["more/../photos"], "photos", PHOTOS),
        (["photos/**/*.png"], "photos", PHOTOS),
        (["photos/a.png"], "photos", PHOTOS[:1]),
        (["photos/a.png", "more/a.png"], "", [BOTH[0], ("more/a.png", "more/a.png")]),
        (["photos", "more"], "", [*BOTH, ("more/a.png", "more/a.png")]),
        (["photos/sub", "photos"], "photos", [PHOTOS[1], *PHOTOS]),
        (["lists/x.txt"], "", LINES),
        (["lists/y.csv"], "", LINES[:1]),
        (["lists/names.parquet"], "", LINES[:1]),
        (["lists/*.parquet"], "lists", [("images.parquet!0...", "")]),
        (["lists/images.parquet"], "lists", [("images.parquet", "images.parquet")]),
        (["photos", "lists/x.txt"], "", [*BOTH, *LINES]),
    ],
)
def test_ids_and_paths_start_at_the_base(inputs: list[str], base: str, entries: list[tuple[str, str]]) -> None:
    found, listed = list_entries(*inputs)
    assert found == base
    if "*.parquet" not in inputs[0]:
        assert listed == entries


def test_lists_start_at_the_root_and_their_failures_have_their_names(here: Path) -> None:
    (here / "lists/y.csv").write_text('path\na.png\n\n"",\n')
    base, listed = list_entries("lists/y.csv", root="photos")
    assert (base, listed) == ("photos", [("a.png", "a.png"), ("y.csv:4", str(here / "lists/y.csv"))])
    assert list_entries("lists/y.csv", "photos", root="more")[1][0] == ("a.png", "more/a.png")


def test_texts_have_the_ids_of_their_lists(here: Path) -> None:
    (here / "more/y.csv").write_text("text\none\n")
    (here / "lists/y.csv").write_text("text\none\n")
    texts = Columns(texts=True)
    assert list_entries("lists/y.csv", columns=texts) == ("lists", [("y.csv!0", "y.csv")])
    several = list_entries("lists/y.csv", "more/y.csv", columns=texts)[1]
    assert several == [("lists/y.csv!0", "lists/y.csv"), ("more/y.csv!0", "more/y.csv")]


def test_what_is_on_servers_has_no_base() -> None:
    assert Source(("http://127.0.0.1:9/a.png",)).with_base().base == ""
    source = Source(("lists/y.csv",), root="s3://bucket/x").with_base()
    (entry,) = source.entries(9, Counter())
    assert (source.base, entry.id, entry.path) == ("", "photos/a.png", "s3://bucket/x/photos/a.png")


def test_a_source_without_a_base_has_the_ids_and_paths_of_version_0_1_0() -> None:
    entries = list(Source(("photos", "more/a.png", "lists/x.txt")).entries(9, Counter()))
    assert [(entry.id, entry.path) for entry in entries] == [
        *[("a.png", "photos/a.png"), ("sub/a.png", "photos/sub/a.png"), ("a.png", "more/a.png")],
        *LINES,
    ]


names = st.lists(st.sampled_from(["a", "ab", "b c", "é"]), max_size=3)


@given(folder=names, others=st.lists(names, max_size=3), file=names)
def test_a_path_below_a_base_is_found_again(folder: list[str], others: list[list[str]], file: list[str]) -> None:
    folders = ["/" + "/".join(parts) for parts in (folder, *others)]
    base = find_common(folders)
    for start in folders:
        path = os.path.normpath(os.path.join(start, *file))
        relative = make_relative(path, base)
        assert not relative.startswith("/")
        assert os.path.normpath(join_root(base, relative)) == path


def test_paths_are_short_below_the_current_folder(here: Path) -> None:
    assert shorten(str(here / "photos/a.png")) == "photos/a.png"
    assert shorten(f"{here}x/a.png") == f"{here}x/a.png"
    assert shorten("s3://b/a.png") == "s3://b/a.png"
    (here / "link").symlink_to(here / "photos/sub")
    assert resolve("link") == str(here / "link")
    assert resolve("link/..") == str(here / "photos")
