"""Images that moved, whole folders or single files, keep their vectors; outputs know where they are."""

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from kit.inputs import NO_IMAGE, draw_photos
from kit.jobs import change_job, embed_job
from kit.outputs import change_manifest, read_manifest, read_rows, read_rows_by_id

import clip
from clip.errors import InputError, StoreError, StoreMismatchError
from clip.jobs import EmbedJob, EmbedReport, ExportJob, SearchJob, VerifyJob
from clip.store.plan import read_plan

DAY_NS = 86_400_000_000_000


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Nine images in two folders and beside them, each of its own size and time."""
    for place, name in enumerate(("", "spring", "autumn")):
        draw_photos(tmp_path / "album" / name, [f"{n}.png" for n in range(3)], first=3 * place, width=40 + 9 * place)
    return tmp_path / "album"


def make_job(source: Any, output: Path, weights: Path, **choices: Any) -> EmbedJob:
    return embed_job(**{"source": source, "output": output, "model": str(weights), "threads": 1, **choices})


def count_new(report: EmbedReport) -> int:
    return report.read - report.resumed


def read_files(folder: Path, of: str = "embeddings") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / of).iterdir()}


def find_paths(output: Path, root: Path | None = None) -> list[str]:
    return [str(path) for path in clip.Store(output, root).table(["path"]).column("path").to_pylist()]


def test_a_folder_that_moved_is_nothing_to_do_and_its_rows_follow(album: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip.embed(make_job(album, out, weights))
    before = read_files(out)
    moved = album.rename(tmp_path / "elsewhere")
    assert count_new(clip.embed(make_job(moved, out, weights))) == 0
    assert read_files(out) == before
    assert find_paths(out) == [str(moved / name) for name in read_rows_by_id(out)]
    assert all(map(os.path.isfile, find_paths(out)))
    assert clip.verify(VerifyJob(output=out, sample=9)).problems == ()
    assert [row["path"] for row in read_rows(out)] == list(read_rows_by_id(out)), "relative to the base"
    assert (read_manifest(out)["base"], read_manifest(out)["source"]) == (str(moved), [str(moved)])


@pytest.mark.parametrize("place", ["out", "album/out", "other/place/out"])
def test_an_output_that_moved_together_with_its_images_finds_them(weights: Path, tmp_path: Path, place: str) -> None:
    project = tmp_path / "project"
    draw_photos(project / "album" / "sub", [f"{n}.png" for n in range(3)])
    clip.embed(make_job(project / "album", project / place, weights))
    moved = project.rename(tmp_path / "elsewhere")
    out = moved / place
    assert find_paths(out) == [str(moved / "album/sub" / f"{n}.png") for n in range(3)]
    assert clip.verify(VerifyJob(output=out, sample=3)).min_cosine == pytest.approx(1)
    report = clip.embed(make_job(moved / "album", out, weights))
    assert count_new(report) == 0
    assert read_manifest(out)["base"] == str(moved / "album")
    (moved / "album/sub").rename(tmp_path / "kept")
    (tmp_path / "photos").mkdir()
    out = shutil.move(out, tmp_path / "photos" / "out")
    if place == "out":  # alone, the place beside it is another one, and not there
        shutil.rmtree(moved)
        with pytest.raises(InputError, match="album: is not there"):
            clip.verify(VerifyJob(output=out, sample=1))


def test_where_the_images_still_are_counts_before_where_they_would_be(weights: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "a" / "album", ["0.png"])
    clip.embed(make_job(tmp_path / "a/album", tmp_path / "a/out", weights))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert find_paths(tmp_path / "b/out") == [str(tmp_path / "a/album/0.png")]


def test_an_output_without_the_place_of_its_images_from_it_is_read_as_ever(weights: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "a" / "album", ["0.png"])
    clip.embed(make_job(tmp_path / "a/album", tmp_path / "a/out", weights))
    change_manifest(tmp_path / "a/out", base_from_output="")
    (tmp_path / "a").rename(tmp_path / "b")
    assert find_paths(tmp_path / "b/out") == [str(tmp_path / "a/album/0.png")]
    change_manifest(tmp_path / "b/out", base_from_output="http://host/")
    with pytest.raises(StoreError, match="its base_from_output is"):
        find_paths(tmp_path / "b/out")


def test_an_output_is_the_same_from_every_folder(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.embed(make_job("album", tmp_path / "out", weights))
    monkeypatch.chdir(album)
    assert count_new(clip.embed(make_job(".", tmp_path / "out", weights))) == 0
    monkeypatch.chdir("/")
    assert count_new(clip.embed(make_job(album, tmp_path / "out", weights))) == 0
    assert clip.verify(VerifyJob(output=tmp_path / "out", sample=9)).problems == ()
    assert all(map(os.path.isfile, find_paths(tmp_path / "out")))


def test_images_that_are_gone_are_found_at_a_root_given_anew(album: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip.embed(make_job(album, out, weights))
    moved = album.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"album: is not there, expected the images of .*as root"):
        clip.verify(VerifyJob(output=out, sample=9))
    assert clip.verify(VerifyJob(output=out, sample=9, root=moved)).min_cosine == pytest.approx(1)
    query = str(tmp_path / "vector.json")
    Path(query).write_text(str(read_rows(out)[0]["embedding"]))
    sheet = tmp_path / "sheet.png"
    found = clip.search(SearchJob(output=out, vector=query, k=9, root=moved, contact_sheet=sheet))
    assert found.unreadable == 0
    assert all(os.path.isfile(hit.path) for hit in found.hits)
    assert clip.search(SearchJob(output=out, vector=query, k=9, contact_sheet=sheet)).unreadable == 9
    with pytest.raises(InputError, match=r"root: .*is no folder here"):
        clip.search(SearchJob(output=out, vector=query, root=album))
    clip.export(ExportJob(output=out, target=tmp_path / "csv", format="csv"))
    assert f",{album}/0.png," in (tmp_path / "csv/vectors.csv").read_text()


@pytest.mark.parametrize("hashes", [False, True])
def test_a_renamed_folder_is_known_and_its_rows_get_the_new_ids(
    album: Path, weights: Path, tmp_path: Path, hashes: bool
) -> None:
    out = tmp_path / "out"
    job = make_job(album, out, weights, shard_size=4, hashes=hashes)
    clip.embed(job)
    before = read_rows_by_id(out)
    (album / "spring").rename(album / "winter")
    (album / "0.png").unlink()
    formula.picture(50, 90, 30).save(album / "new.png")
    if hashes:
        os.utime(album / "winter/1.png", ns=(1, 1))
    counts = r"out: 4 new, 4 gone since \(3 renamed\)\. Add update=True"
    with pytest.raises(StoreMismatchError, match=counts if not hashes else "4 new, 4 gone since"):
        clip.embed(job)
    report = clip.embed(change_job(job, update=True))
    assert (count_new(report), report.renamed, report.removed) == (1, 3, 1)
    after = read_rows_by_id(out)
    for n in range(3):
        expected = before[f"spring/{n}.png"] | {"id": f"winter/{n}.png", "path": f"winter/{n}.png"}
        assert after[f"winter/{n}.png"] == expected
    assert clip.verify(VerifyJob(output=out, sample=9)).problems == ()
    assert count_new(clip.embed(job)) == 0


def test_what_time_and_size_do_not_tell_apart_is_embedded_again(weights: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(3):
        formula.picture(n, 40, 30).save(photos / f"{n}.bmp")  # all of one size
        os.utime(photos / f"{n}.bmp", ns=(DAY_NS, DAY_NS))
    job = make_job(photos, tmp_path / "out", weights, update=True)
    clip.embed(job)
    (photos / "0.bmp").unlink()  # is 00.bmp this one, or a copy of another?
    shutil.copy2(photos / "1.bmp", photos / "00.bmp")
    assert count_new(clip.embed(job)) == 1
    rows = read_rows_by_id(tmp_path / "out")
    assert rows["00.bmp"]["embedding"] == pytest.approx(rows["1.bmp"]["embedding"], abs=1e-5)
    (photos / "sub").mkdir()
    for name in ("1.bmp", "2.bmp"):  # of the same name each
        (photos / name).rename(photos / "sub" / name)
    report = clip.embed(job)
    assert (count_new(report), report.renamed) == (0, 2)


def test_an_interrupted_update_keeps_what_it_renames(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = make_job(album, out, weights, shard_size=2, update=True)
    clip.embed(job)
    with monkeypatch.context() as patch:
        patch.setattr("clip.batch.embed.Run.write", _stop)
        for before, after in (("spring", "winter"), ("winter", "summer")):
            (album / before).rename(album / after)
            with pytest.raises(KeyboardInterrupt):
                clip.embed(job)
    assert count_new(clip.embed(change_job(job, update=False))) == 0
    assert sorted(read_rows_by_id(out)) == sorted(str(p.relative_to(album)) for p in album.rglob("*.png"))
    assert clip.verify(VerifyJob(output=out, sample=9)).problems == ()


def _stop(*_: object) -> int:
    raise KeyboardInterrupt


def test_several_folders_have_their_names_in_ids_and_a_file_has_one_id(
    album: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    clip.embed(make_job([album / "spring", album / "autumn"], out, weights))
    assert list(read_rows_by_id(out)) == [f"{name}/{n}.png" for name in ("spring", "autumn") for n in range(3)]
    moved = album.rename(tmp_path / "elsewhere")
    assert count_new(clip.embed(make_job([moved / "spring", moved / "autumn"], out, weights))) == 0
    with pytest.raises(InputError, match=r"'spring/0.png': found as the id of"):
        clip.embed(make_job([moved, moved / "spring"], tmp_path / "two", weights))
    apart = shutil.move(moved / "spring", tmp_path / "apart")
    report = clip.embed(make_job([apart, moved / "autumn"], out, weights, update=True))
    assert (count_new(report), report.renamed) == (0, 6)
    assert list(read_rows_by_id(out))[3] == "elsewhere/autumn/0.png"


def test_lists_start_at_their_root_wherever_the_command_is_given(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, absolute = tmp_path / "out", str(album / "2.png")
    (tmp_path / "list.csv").write_text(f"path\n0.png\nspring/0.png\n{absolute}\nhttp://127.0.0.1:9/x.png\n")
    monkeypatch.chdir(album)
    job = make_job(tmp_path / "list.csv", out, weights)
    assert clip.embed(job).written == 3
    monkeypatch.chdir("/")
    assert count_new(clip.embed(job)) == 0
    assert clip.verify(VerifyJob(output=out, sample=3, fetch=True)).problems == ()
    assert find_paths(out) == [str(album / "0.png"), str(album / "spring/0.png"), absolute]
    assert list(read_rows_by_id(out)) == ["0.png", "spring/0.png", absolute]
    moved = album.rename(tmp_path / "elsewhere")
    (tmp_path / "list.csv").write_text(f"path\n0.png\nspring/0.png\n{moved}/2.png\nhttp://127.0.0.1:9/x.png\n")
    with pytest.raises(StoreMismatchError, match=r"1 new, 1 gone since \(1 renamed\)"):
        clip.embed(change_job(job, root=str(moved)))
    report = clip.embed(change_job(job, root=str(moved), update=True))
    assert (report.written, report.renamed, report.removed) == (3, 1, 0)
    assert list(read_rows_by_id(out)) == ["0.png", "spring/0.png", f"{moved}/2.png"]
    assert all(map(os.path.isfile, find_paths(out)))


def test_paths_that_changed_under_the_same_ids_are_rewritten_and_nothing_is_embedded(
    album: Path, weights: Path, tmp_path: Path
) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"key,path\na,{album}/0.png\nb,{album}/spring/0.png\n")
    job = make_job(table, tmp_path / "out", weights, id_column="key")
    clip.embed(job)
    moved = album.rename(tmp_path / "elsewhere")
    table.write_text(f"key,path\na,{moved}/0.png\nb,{moved}/spring/0.png\n")
    with pytest.raises(StoreMismatchError, match="2 moved since"):
        clip.embed(job)
    assert count_new(clip.embed(change_job(job, update=True))) == 0
    assert find_paths(tmp_path / "out") == [f"{moved}/0.png", f"{moved}/spring/0.png"]


def test_containers_move_with_their_images(album: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a/x.tar", "w") as archive:
        for name in ("0.png", "1.png"):
            archive.add(album / name, name)
    out = tmp_path / "out"
    clip.embed(make_job([tmp_path / "a/x.tar", album], out, weights))
    assert {"a/x.tar!0.png", "album/0.png"} <= set(read_rows_by_id(out))
    clip.embed(make_job(tmp_path / "a/x.tar", tmp_path / "alone", weights))
    assert list(read_rows_by_id(tmp_path / "alone")) == ["x.tar!0.png", "x.tar!1.png"]
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert count_new(clip.embed(make_job(moved / "x.tar", tmp_path / "alone", weights))) == 0
    assert find_paths(tmp_path / "alone") == [str(moved / "x.tar")] * 2
    assert clip.verify(VerifyJob(output=tmp_path / "alone", sample=2)).problems == ()


def test_links_stay_links(album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(album)
    monkeypatch.chdir(tmp_path)
    clip.embed(make_job("link", tmp_path / "out", weights))
    assert read_manifest(tmp_path / "out")["base"] == str(tmp_path / "link")
    clip.embed(make_job("link/spring/../autumn", tmp_path / "two", weights))
    assert read_manifest(tmp_path / "two")["base"] == str(album / "autumn")


def test_a_base_that_is_no_path_here_is_refused(album: Path, weights: Path, tmp_path: Path) -> None:
    clip.embed(make_job(album, tmp_path / "out", weights))
    change_manifest(tmp_path / "out", base="s3://bucket/photos")
    with pytest.raises(StoreError, match="its base is 's3://bucket/photos'"):
        clip.verify(VerifyJob(output=tmp_path / "out", sample=1, fetch=True))


def test_the_listing_keeps_relative_paths(album: Path, weights: Path, tmp_path: Path) -> None:
    clip.embed(make_job(album, tmp_path / "out", weights))
    plan = read_plan(tmp_path / "out")
    assert plan is not None
    assert [entry.path for shard in plan for entry in shard.entries] == list(read_rows_by_id(tmp_path / "out"))


FOLDERS = ("", "a", "b", "a/c")
places = st.tuples(st.sampled_from(FOLDERS), st.integers(0, 3)).map(
    lambda pair: os.path.join(pair[0], f"{pair[1]}.png")
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), places, st.booleans()),
        st.tuples(st.just("remove"), places, st.none()),
        st.tuples(st.just("swap"), places, places),
        st.tuples(st.just("move"), places, places),
        st.tuples(st.just("rename"), st.sampled_from(FOLDERS[1:]), st.sampled_from(("a", "b", "d", "d/e"))),
    ),
    max_size=6,
)
trees = st.dictionaries(places, st.booleans(), min_size=1, max_size=8)


class _Tree:
    """A folder in which each content has its own size and time of change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0

    def add(self, name: str, *, broken: bool) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._made += 1
        if broken:
            path.write_bytes(NO_IMAGE + b" " * self._made)
        else:
            formula.picture(self._made, 20 + self._made, 24).save(path, "PNG")
        os.utime(path, ns=(DAY_NS, DAY_NS + self._made))

    def take(self, what: str, first: str, second: Any) -> None:
        path, other = self.folder / first, self.folder / str(second)
        if what == "add":
            self.add(first, broken=second)
        elif not path.exists() or path == other or path in other.parents:
            return
        elif what == "remove":
            path.unlink()
        elif what == "swap" and other.exists():
            path.rename(self.folder / "held")
            other.rename(path)
            (self.folder / "held").rename(other)
        elif not other.exists():
            other.parent.mkdir(parents=True, exist_ok=True)
            path.rename(other)

    def contents(self) -> Iterator[tuple[int, int]]:
        for path in self.folder.rglob("*.png"):
            yield path.stat().st_size, path.stat().st_mtime_ns


@settings(deadline=None, max_examples=20)
@given(tree=trees, rounds=st.lists(steps, min_size=1, max_size=2), moves=st.booleans())
def test_an_update_after_any_moves_has_a_fresh_runs_rows_and_embeds_new_contents_alone(
    weights: Path, tree: dict[str, bool], rounds: list[Any], moves: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = _Tree(folder / "tree")
        made.add("kept.png", broken=False)  # or all might go
        for place, broken in tree.items():
            made.add(place, broken=broken)
        out = folder / "out"
        clip.embed(make_job(made.folder, out, weights, shard_size=3))
        for number, taken in enumerate(rounds):
            before = set(made.contents())
            for step in taken:
                made.take(*step)
            if moves:
                made.folder = made.folder.rename(folder / f"tree{number}")
            report = clip.embed(make_job(made.folder, out, weights, shard_size=3, update=True))
            assert count_new(report) == len(set(made.contents()) - before)
            fresh = folder / f"fresh{number}"
            clip.embed(make_job(made.folder, fresh, weights))
            for of in ("embeddings", "failures"):
                rows, expected = (read_rows_by_id(output, of) for output in (out, fresh))
                assert rows.keys() == expected.keys()
                for own_id, row in rows.items():
                    vector = row.pop("embedding", [])
                    assert vector == pytest.approx(expected[own_id].pop("embedding", []), abs=1e-5)
                    assert row == expected[own_id]
            assert clip.verify(VerifyJob(output=out)).problems == ()


def test_a_list_on_standard_input_starts_where_the_command_is_given(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (album / "spring", album / "autumn"):
        monkeypatch.chdir(place)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"0.png\n")))
        report = clip.embed(make_job("-", tmp_path / "out", weights, update=True))
        assert (report.written, count_new(report)) == (1, 1), "another list, and another image"
        assert find_paths(tmp_path / "out") == [str(place / "0.png")]


def write_archives(folder: Path, album: Path) -> list[Path]:
    """A tar, a zip of two parts, and a Parquet file of two row groups, each with what is no image or no whole one."""
    folder.mkdir()
    names = ["0.png", "1.png", "spring/0.png", "autumn/0.png"]
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name in names:
            tar.add(album / name, name)
        tar.add(album / "0.png", "0.png")
        tar.addfile(tarfile.TarInfo("note.md"))
        tar.addfile(tarfile.TarInfo("broken.png"))
    with zipfile.ZipFile(folder / "y.zip", "w") as archive:
        for name in names:
            archive.write(album / name, name)
    images = [(album / name).read_bytes() for name in names]
    pq.write_table(pa.table({"image": images, "key": list("abcd")}), folder / "z.parquet", row_group_size=2)
    return sorted(folder.iterdir())


def test_renamed_archives_and_tables_keep_their_vectors_under_their_new_names(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives, out = write_archives(tmp_path / "a", album), tmp_path / "out"
    clip.embed(make_job(archives, out, weights, shard_size=3))
    before = read_rows(out)
    renamed = [path.rename(path.with_stem(f"new {path.stem}")) for path in archives]
    job = make_job(renamed, out, weights, shard_size=3)
    with pytest.raises(StoreMismatchError, match=r"5 new, 5 gone since \(5 renamed\)"):
        clip.embed(job)
    monkeypatch.setattr("clip.sources.source.Source.members", lambda *_: pytest.fail("an archive was read"))
    report = clip.embed(change_job(job, update=True))
    monkeypatch.undo()
    assert (count_new(report), report.renamed, report.removed, report.failed) == (0, 5, 0, 1)
    assert report.ignored == {"not an image": 1}
    after = read_rows(out)
    expected = [row | {"id": f"new {row['id']}", "path": f"new {row['path']}"} for row in before]
    assert after == expected
    assert [row["id"] for row in pq.read_table(out / "failures").to_pylist()] == ["new x.tar!broken.png"]
    assert clip.verify(VerifyJob(output=out, sample=13)).problems == ()
    assert count_new(clip.embed(job)) == 0
    fresh = tmp_path / "fresh"
    clip.embed(change_job(job, output=fresh))
    assert [row["id"] for row in read_rows(fresh)] == [row["id"] for row in after]


def test_ids_of_a_column_stay_when_their_table_is_renamed(album: Path, weights: Path, tmp_path: Path) -> None:
    table, out = write_archives(tmp_path / "a", album)[2], tmp_path / "out"
    clip.embed(make_job(table, out, weights, id_column="key"))
    moved = table.rename(table.with_name("b.parquet"))
    report = clip.embed(make_job(moved, out, weights, id_column="key", update=True))
    assert (count_new(report), report.renamed) == (0, 1)
    assert [(row["id"], row["path"]) for row in read_rows(out)] == [(key, "b.parquet") for key in "abcd"]
    assert clip.verify(VerifyJob(output=out, sample=4)).problems == ()


def test_an_archive_that_was_copied_is_not_taken_for_a_renamed_one(album: Path, weights: Path, tmp_path: Path) -> None:
    tar, _, _ = write_archives(tmp_path / "a", album)
    copy, out = tar.with_name("copy.tar"), tmp_path / "out"
    shutil.copy2(tar, copy)
    clip.embed(make_job([tar, copy], out, weights))
    tar.unlink()
    report = clip.embed(make_job([copy], out, weights, update=True))
    assert (count_new(report), report.renamed, report.removed) == (0, 0, 1)
    other = tar.with_name("other.tar")
    shutil.copy2(copy, other)
    report = clip.embed(make_job([copy, other], out, weights, update=True))
    assert (count_new(report), report.renamed) == (6, 0), "it is new: its rows are made, not copied"
    assert clip.verify(VerifyJob(output=out, sample=12)).problems == ()


def test_a_table_that_names_images_elsewhere_is_read_again(album: Path, weights: Path, tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": str(album / "0.png")}, {"bytes": (album / "1.png").read_bytes(), "path": None}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    out = tmp_path / "out"
    clip.embed(make_job([tmp_path / "a.parquet", album / "2.png"], out, weights))
    moved = (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    report = clip.embed(make_job([moved, album / "2.png"], out, weights, update=True))
    assert (report.written, report.renamed, count_new(report)) == (3, 0, 2)
    assert {row["id"] for row in read_rows(out)} == {"b.parquet!0", "b.parquet!1", "album/2.png"}


def test_an_update_that_ends_before_an_archive_is_renamed_is_finished_by_the_next(
    album: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives, out = write_archives(tmp_path / "a", album), tmp_path / "out"
    clip.embed(make_job(archives, out, weights))
    before = read_rows(out)
    renamed = [path.rename(path.with_stem(f"new {path.stem}")) for path in archives]
    job = make_job(renamed, out, weights, update=True)

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clip.batch.planning.rename_containers", end)
    with pytest.raises(KeyboardInterrupt):
        clip.embed(job)
    monkeypatch.undo()
    clip.embed(job)
    assert [row["id"] for row in read_rows(out)] == [f"new {row['id']}" for row in before]
    assert clip.verify(VerifyJob(output=out, sample=13)).problems == ()
