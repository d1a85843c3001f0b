"""The same images as a folder, a list, an archive, a table: the same vectors and failures, under the ids promised."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.forms import (
    ALL,
    BAD,
    IMAGES,
    NAMES,
    Contents,
    check_same,
    contents,
    draw,
    embedded,
    write_list,
    write_table,
    write_tar,
    write_zip,
)
from kit.jobs import change_job, embed_job

import clip
from clip.batch.verify import verify
from clip.errors import InputError
from clip.jobs.verify import VerifyJob
from clip.sources.source import Source


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("inputs") / "photos")


@pytest.fixture(scope="module")
def expected(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    found = embedded(tmp_path_factory.mktemp("expected"), weights, photos)
    assert sorted(found[0]) == sorted(NAMES)
    assert list(found[1]) == [BAD]
    return found


@pytest.mark.parametrize("kind", ["txt", "nul", "csv", "tsv", "ndjson"])
def test_lists(photos: Path, weights: Path, expected: Contents, tmp_path: Path, kind: str) -> None:
    path = write_list(photos, tmp_path / f"list.{'txt' if kind == 'nul' else kind}", kind)
    check_same(embedded(tmp_path / "out", weights, path), expected, lambda name: str(photos / name))
    if kind not in ("txt", "nul"):
        check_same(embedded(tmp_path / "keyed", weights, path, id_column="key"), expected, str)


def test_relative_paths_of_a_list_start_at_a_root_or_in_the_current_folder(
    photos: Path, weights: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(ALL))
    check_same(embedded(tmp_path / "rooted", weights, tmp_path / "list.txt", root=str(photos)), expected, str)
    monkeypatch.chdir(photos)
    check_same(embedded(tmp_path / "here", weights, tmp_path / "list.txt"), expected, str)


def test_a_list_on_stdin(photos: Path, weights: Path, expected: Contents, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip", "embed", "-", "-o", str(tmp_path / "out"), "-m", str(weights)]
    names = "".join(f"{name}\n" for name in ALL)
    ran = subprocess.run(command, input=names, cwd=photos, text=True, stderr=subprocess.PIPE, check=False, timeout=60)
    assert ran.returncode == 3, ran.stderr
    check_same(contents(tmp_path / "out"), expected, str)


@pytest.mark.parametrize(
    ("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz"), ("tar.bz2", "w:bz2")]
)
def test_tar_archives(photos: Path, weights: Path, expected: Contents, tmp_path: Path, ending: str, mode: str) -> None:
    path = write_tar(photos, tmp_path / f"a.{ending}", mode, prefix="./")
    check_same(embedded(tmp_path / "out", weights, path), expected, lambda name: f"a.{ending}!{name}")
    counts = clip.Store(tmp_path / "out").manifest.counts
    assert counts == {"read": 31, "written": 30, "failed": 1, "ignored": {"not an image": 1}}
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 1, "a tar is a shard"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_zip_archives(photos: Path, weights: Path, expected: Contents, tmp_path: Path, method: int) -> None:
    path = write_zip(photos, tmp_path / "a.zip", method)
    check_same(embedded(tmp_path / "out", weights, path), expected, lambda name: f"a.zip!{name}")
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 5, "33 members in shards of 7"


@pytest.mark.parametrize("kind", ["bytes", "struct", "struct of paths"])
def test_tables_that_hold_images(photos: Path, weights: Path, expected: Contents, tmp_path: Path, kind: str) -> None:
    path = write_table(photos, tmp_path / "a.parquet", kind)
    numbers = {name: f"a.parquet!{number}" for number, name in enumerate(ALL)}
    check_same(embedded(tmp_path / "out", weights, path), expected, numbers.__getitem__)
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 6, "row groups of 5, the last of 1"
    check_same(embedded(tmp_path / "keyed", weights, path, id_column="key", column="image"), expected, str)


def test_tables_that_name_images(photos: Path, weights: Path, expected: Contents, tmp_path: Path) -> None:
    path = write_table(photos, tmp_path / "a.parquet", "paths")
    check_same(embedded(tmp_path / "out", weights, path), expected, lambda name: str(photos / name))
    check_same(embedded(tmp_path / "keyed", weights, path, id_column="key"), expected, str)


def test_patterns_braces_and_several_inputs(
    photos: Path, weights: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    inputs = ["photos/sub", "photos/*.png", "photos/0{3,9}.jpg", "photos/{15..27}.jpg"]
    found = embedded(
        tmp_path / "out", weights, *(name for name in inputs if "15" not in name), "photos/15.jpg", "photos/2[17].jpg"
    )
    check_same(found, expected, lambda name: name)
    with pytest.raises(InputError, match=r"photos/16\.jpg: no such file"):
        Source(("photos/{15..27}.jpg",))
    for number in range(3):
        write_tar(photos, tmp_path / f"{number:02}.tar")
    archives = embedded(tmp_path / "tars", weights, f"{tmp_path}/{{00..02}}.tar")
    assert archives == embedded(tmp_path / "globbed", weights, f"{tmp_path}/*.tar")
    assert len(archives[0]) == 3 * IMAGES


def test_archives_in_a_folder_are_read_where_a_glob_asks_for_them(photos: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    write_tar(photos, tmp_path / "in/deep/a.tar")
    found = embedded(tmp_path / "out", weights, tmp_path / "in", globs=("*.tar",))
    assert set(found[0]) == set(), "the glob is for members too"


def test_globs_choose_members(photos: Path, weights: Path, tmp_path: Path) -> None:
    path = write_tar(photos, tmp_path / "a.tar")
    found = embedded(tmp_path / "out", weights, path, globs=("sub/*.png", "notes.txt"))
    assert set(found[0]) == {f"a.tar!{name}" for name in NAMES if name.startswith("sub/") and name.endswith("png")}
    assert set(found[1]) == {"a.tar!notes.txt"}


def test_a_limit_counts_members_where_they_are_known(photos: Path, weights: Path, tmp_path: Path) -> None:
    write_zip(photos, tmp_path / "a.zip")
    write_tar(photos, tmp_path / "a.tar")
    found = embedded(tmp_path / "tar", weights, tmp_path / "a.tar", tmp_path / "a.zip", limit=5)
    assert list(found[0]) == [f"a.tar!{name}" for name in NAMES[:5]]
    found = embedded(tmp_path / "both", weights, photos / NAMES[0], tmp_path / "a.tar", limit=5)
    base = os.path.commonpath([photos, tmp_path])
    own_ids = [photos / NAMES[0], *(tmp_path / f"a.tar!{name}" for name in NAMES[:4])]
    assert list(found[0]) == [str(own_id.relative_to(base)) for own_id in own_ids]


def test_ids_that_occur_twice_are_refused_by_both_names_or_kept(photos: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / NAMES[0]}\n{photos / NAMES[1]}\n{photos / NAMES[0]}\n")
    first = re.escape(str(photos / NAMES[0]))
    expected = ", expected one entry for each id"
    with pytest.raises(InputError, match=rf"^'{first}': found as the id of {first} and of {first}{expected}"):
        embedded(tmp_path / "out", weights, tmp_path / "list.txt")
    with pytest.raises(InputError, match=rf"^'00\.png': found as the id of {first} and of {first}{expected}"):
        embedded(tmp_path / "out", weights, photos, photos / NAMES[0])
    asked = embed_job(source=tmp_path / "list.txt", output=tmp_path / "kept", model=str(weights), duplicate_ids="keep")
    assert clip.embed(asked).written == 3
    assert verify(VerifyJob(output=tmp_path / "kept", sample=3)).problems == ()
    with pytest.raises(InputError, match=r"^update: found duplicate_ids too, expected one of them"):
        embed_job(source="x", output="y", duplicate_ids="keep", update=True)


def test_members_of_one_name_are_told_apart(photos: Path, weights: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in (NAMES[0], NAMES[1], NAMES[2]):
            archive.add(photos / name, "same.png")
    found = embedded(tmp_path / "out", weights, tmp_path / "a.tar")
    assert list(found[0]) == ["a.tar!same.png", "a.tar!same.png~2", "a.tar!same.png~3"]


@pytest.mark.parametrize("make", [write_tar, write_zip, lambda photos, path: write_table(photos, path, "bytes")])
def test_outputs_of_archives_are_resumed_updated_and_verified(
    photos: Path, weights: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    endings = {write_tar: "tar", write_zip: "zip"}
    ending = endings.get(make, "parquet")
    for number in range(2):
        make(photos, tmp_path / f"{number}.{ending}")
    out = tmp_path / "out"
    first = embedded(out, weights, f"{tmp_path}/*.{ending}")
    report = verify(VerifyJob(output=out, sample=20))
    assert (report.problems, report.sampled) == ((), 20)
    assert report.read == 62
    before = {path.name: path.stat().st_ino for path in out.glob("embeddings/*")}
    asked = embed_job(source=f"{tmp_path}/*.{ending}", output=out, model=str(weights), threads=1, shard_size=7)
    assert clip.embed(asked).resumed == 62
    os.utime(tmp_path / f"1.{ending}", ns=(1, 1))
    make(photos, tmp_path / f"2.{ending}")
    updated = change_job(asked, **{"update": True})
    report = clip.embed(updated)
    assert (report.read, report.resumed) == (93, 31)
    assert {name: vector for name, vector in contents(out)[0].items() if not name.startswith("2")} == first[0]
    kept = [name for name, inode in before.items() if (out / "embeddings" / name).stat().st_ino == inode]
    assert len(kept) == len(before) // 2
    assert verify(VerifyJob(output=out, sample=5)).problems == ()
