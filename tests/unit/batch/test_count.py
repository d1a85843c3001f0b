"""read = written + failed, compared with the listing: each way to lose or double something is found, and nothing else.

Every form of input is broken between the source and the reader, between the reader and the part, and in the part. A run
and `clip verify` find it with the same function.
"""

import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import formula
from kit.forms import pack_tar, pack_zip
from kit.jobs import embed_job
from kit.outputs import write_part

import clip
from clip.batch import part_in_work as part_module
from clip.batch import run as run_module
from clip.batch.count import Count, Expected
from clip.batch.decode import Answer, Chunk
from clip.batch.feed import Block
from clip.batch.prepare import Preparing
from clip.batch.verify import verify
from clip.errors import InputError, StoreError
from clip.jobs.verify import VerifyJob
from clip.records import Row

IMAGES = 7
PART = "embeddings/part-00000.parquet"
FORMS = ["folder", "list", "zip", "tar", "parquet", "frames", "frames in a zip"]


def encode(n: int, frames: int = 1) -> bytes:
    buffer = io.BytesIO()
    first, *others = (formula.picture(10 * n + more, 40, 30) for more in range(frames))
    if others:
        first.save(buffer, "TIFF", save_all=True, append_images=others)
    else:
        first.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Images, one of them none."""
    return {f"{n}.png": b"no image" if n == 3 else encode(n) for n in range(IMAGES)}


def write_input(form: str, folder: Path, contents: dict[str, bytes]) -> tuple[Path, dict[str, Any]]:
    """An input of a form, and the options that it needs."""
    if form in ("zip", "frames in a zip"):
        more = {"5.png": encode(5, frames=3)} if form != "zip" else {}
        return pack_zip(folder / "a.zip", contents | more), {"frames": "all"} if more else {}
    if form == "tar":
        return pack_tar(folder / "a.tar", contents), {}
    if form == "parquet":
        pq.write_table(pa.table({"image": list(contents.values())}), folder / "a.parquet")
        return folder / "a.parquet", {}
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for name, data in contents.items():
        (photos / name).write_bytes(data)
    if form == "frames":
        (photos / "5.png").write_bytes(encode(5, frames=3))
        return photos, {"frames": "all"}
    if form == "list":
        (folder / "a.txt").write_text("".join(f"{name}\n" for name in contents))
        return folder / "a.txt", {"root": str(photos)}
    return photos, {}


@pytest.fixture
def embedded(text_weights: Path, tmp_path: Path, contents: dict[str, bytes]) -> Callable[..., clip.EmbedReport]:
    def call(form: str, **options: Any) -> clip.EmbedReport:
        source, needed = write_input(form, tmp_path, contents)
        for path in (source, *(tmp_path / "photos").glob("*")):
            seconds = zlib.crc32(path.read_bytes()) if path.is_file() else 0  # the same time for the same bytes
            os.utime(path, (seconds, seconds))
        defaults = {"threads": 1, "workers": 1, "batch_size": 2}
        return clip.embed(
            embed_job(source=source, output=tmp_path / "out", model=str(text_weights), **defaults | needed | options)
        )

    return call


def find_miscounts(out: Path) -> list[str]:
    """What verify says of counts."""
    problems = [problem.what for problem in verify(VerifyJob(output=out)).problems]
    return [what for what in problems if what.startswith("holds ")]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_whole_is_right(form: str, embedded: Callable[..., clip.EmbedReport], tmp_path: Path) -> None:
    report = embedded(form)
    further = 2 if "frames" in form else 0
    assert (report.read, report.written, report.failed) == (IMAGES + further, IMAGES - 1 + further, 1)
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()
    assert verify(VerifyJob(output=tmp_path / "out")).read == report.read


def lose_in_decoder(patch: pytest.MonkeyPatch) -> None:
    """An entry becomes nothing, between the reader and the part."""
    prepare = Preparing.__call__

    def lose(self: Preparing, chunk: Chunk) -> Answer:
        return prepare(self, replace(chunk, entries=[entry for entry in chunk.entries if "5" not in entry.id]))

    patch.setattr(Preparing, "__call__", lose)


def lose_in_part(patch: pytest.MonkeyPatch) -> None:
    """An outcome, of a file with three frames the second one, does not reach its part."""
    add = part_module.PartInWork.add

    def lose(self: Any, block: Block) -> int:
        kept = [outcome for outcome in block.outcomes if not outcome.id.endswith(("5.png", "5", "5.png#1"))]
        return add(self, replace(block, outcomes=kept))

    patch.setattr(part_module.PartInWork, "add", lose)


def lose_rows_in_writer(patch: pytest.MonkeyPatch) -> None:
    """A row does not reach the file."""
    write_table = pq.ParquetWriter.write_table

    def lose(self: Any, table: pa.Table, **options: Any) -> None:
        write_table(self, table.slice(1) if "embedding" in table.column_names else table, **options)

    patch.setattr(pq.ParquetWriter, "write_table", lose)


def double_in_part(patch: pytest.MonkeyPatch) -> None:
    add = part_module.PartInWork.add

    def double(self: Any, block: Block) -> int:
        outcomes = [o for o in block.outcomes for _ in range(1 + (isinstance(o, Row) and "5" in o.id))]
        crops = None if block.crops is None else np.concatenate([block.crops, block.crops])
        return add(self, replace(block, outcomes=outcomes, crops=crops, start=None))

    patch.setattr(part_module.PartInWork, "add", double)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("break_it", [lose_in_decoder, lose_in_part, lose_rows_in_writer, double_in_part])
def test_what_is_lost_or_doubled_between_reader_and_part_ends_the_run(
    form: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    embedded: Callable[..., clip.EmbedReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    with pytest.raises(StoreError, match=r"part-00000\.parquet: holds .* together, as many as were read"):
        embedded(form)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"] is None
    monkeypatch.undo()
    assert find_miscounts(tmp_path / "out"), "verify finds it too"


def change_entries(patch: pytest.MonkeyPatch, times: int) -> None:
    """The source gives one entry never, or twice, before the reader counts it."""
    count = run_module._End.count

    def changed(self: Any, entries: Any) -> Iterator[Any]:
        is_it = [(entry, entry.id.removesuffix(".png").endswith("2")) for entry in entries]
        yield from count(self, [entry for entry, chosen in is_it for _ in range(times if chosen else 1)])

    patch.setattr(run_module._End, "count", changed)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "tar"])
@pytest.mark.parametrize("times", [0, 2], ids=["lost", "doubled"])
def test_what_the_reader_loses_or_doubles_is_not_as_many_as_are_listed(
    form: str, times: int, embedded: Callable[..., clip.EmbedReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_entries(monkeypatch, times)
    with pytest.raises(StoreError, match=r"part-00000\.parquet: holds .*expected 7 together, as many as are listed"):
        embedded(form)
    monkeypatch.undo()
    assert any("expected 7 together, as many as are listed" in what for what in find_miscounts(tmp_path / "out"))


def test_a_member_that_reading_ahead_loses_is_found(
    embedded: Callable[..., clip.EmbedReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar does not say how many members it has; the reader counts them before they wait for their turn."""
    read_ahead = run_module.read_ahead

    def lose(items: Any, *others: Any) -> Iterator[Any]:
        yield from (entry for entry in read_ahead(items, *others) if not entry.id.endswith("5.png"))

    monkeypatch.setattr(run_module, "read_ahead", lose)
    with pytest.raises(StoreError, match="expected 7 together, as many as were read"):
        embedded("tar")


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a part, and keep its metadata."""
    write_part(part, change(pq.read_table(part)), pq.read_metadata(part).metadata)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("folder", ["embeddings", "failures"])
def test_a_row_that_is_removed_afterwards_is_found_by_verify_and_by_the_next_run(
    form: str, folder: str, embedded: Callable[..., clip.EmbedReport], tmp_path: Path
) -> None:
    embedded(form)
    part = tmp_path / "out" / folder / "part-00000.parquet"
    rewrite(part, lambda table: table.slice(1))
    assert any("as many as were read" in what for what in find_miscounts(tmp_path / "out"))
    with pytest.raises(StoreError, match="as many as were read"):
        embedded(form)


@pytest.mark.parametrize("form", ["folder", "list", "frames"])
def test_a_row_that_an_update_loses_on_the_way_ends_it(
    form: str,
    embedded: Callable[..., clip.EmbedReport],
    contents: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded(form)
    monkeypatch.setitem(contents, "1.png", encode(9))
    with monkeypatch.context() as patch:
        lose_rows_in_writer(patch)  # the first one, which is carried over
        with pytest.raises(StoreError, match="as many as were read"):
            embedded(form, update=True)
    assert find_miscounts(tmp_path / "out")
    (tmp_path / "out" / PART).unlink()
    assert embedded(form, update=True).written == IMAGES - 1 + 2 * (form == "frames")
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()


@pytest.mark.parametrize("form", ["folder", "frames"])
def test_an_update_counts_what_it_carries_over(
    form: str,
    embedded: Callable[..., clip.EmbedReport],
    contents: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded(form)
    monkeypatch.setitem(contents, "1.png", encode(9))
    further = 2 * (form == "frames")
    assert embedded(form, update=True).read == IMAGES + further
    noted = pq.read_metadata(tmp_path / "out" / PART).metadata
    assert (int(noted[b"clip.read"]), int(noted.get(b"clip.frames", 0))) == (IMAGES + further, further)
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()


# No false alarms.


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("limit", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("frames", ["first", "all"])
def test_members_that_are_no_images_are_not_missing(
    form: str, limit: int | None, frames: str, text_weights: Path, tmp_path: Path
) -> None:
    others = {
        ".hidden.png": encode(0),
        "notes.txt": b"text",
        "b/": b"",
        "__MACOSX/._0.png": b"",
        "no extension": b"text",
    }
    contents = {**others, **{f"{n}.png": encode(n, frames=1 + n % 2) for n in range(4)}, "z.txt": b"", "y": encode(7)}
    write = pack_zip if form == "zip" else pack_tar
    job = embed_job(
        source=write(tmp_path / f"a.{form}", contents),
        output=tmp_path / "out",
        model=str(text_weights),
        threads=1,
        limit=limit,
        frames=frames,
        shard_size=5,
    )
    report = clip.embed(job)
    if frames == "first":
        assert 0 < report.written <= min(5, limit or 5)
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()
    assert clip.embed(job).read == report.read


@pytest.mark.parametrize("limit", [None, 2, 6])
@pytest.mark.parametrize("shard_size", [3, 100])
@pytest.mark.parametrize("form", ["zip", "tar", "parquet"])
def test_an_archive_that_ends_early_has_one_failure_for_the_rest(
    form: str, shard_size: int, limit: int | None, text_weights: Path, tmp_path: Path
) -> None:
    source, _ = write_input(form, tmp_path, {f"{n}.png": encode(n) for n in range(8)})
    data, status = source.read_bytes(), source.stat()

    def spoil(cut: int) -> None:
        """Keep size and time, as a disk does that spoils a file."""
        source.write_bytes(data[:cut] + b"\xff" * (len(data) - cut))  # zeros would end a tar in order
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))

    failed = 0
    for number, cut in enumerate((len(data) // 3, len(data) // 2, len(data) - 30, len(data))):
        for spoilt_when in ("before", "after the listing"):
            out = tmp_path / f"{number} {spoilt_when}"
            job = embed_job(
                source=source, output=out, model=str(text_weights), threads=1, shard_size=shard_size, limit=limit
            )
            spoil(cut if spoilt_when == "before" else len(data))
            try:
                report = clip.embed(job, lambda progress, cut=cut: spoil(cut) if progress.listing else None)
            except InputError as exc:
                assert (form, spoilt_when) == ("parquet", "before"), exc
                continue
            failed += report.failed
            assert report.read == report.written + report.failed
            assert report.failed > 0 or cut == len(data) or limit is not None or form == "tar"
            assert verify(VerifyJob(output=out)).problems == ()
    assert failed or limit == 2


def test_a_list_that_names_an_image_twice_has_both_rows(text_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(1))
    (tmp_path / "b.tiff").write_bytes(encode(2, frames=2))
    (tmp_path / "a.txt").write_text("a.png\nb.tiff\na.png\nb.tiff\n")
    for frames, rows in (("first", 4), ("all", 6)):
        out = tmp_path / frames
        job = embed_job(
            source=tmp_path / "a.txt",
            root=str(tmp_path),
            output=out,
            model=str(text_weights),
            threads=1,
            duplicate_ids="keep",
            frames=frames,
        )
        assert clip.embed(job).written == rows
        assert verify(VerifyJob(output=out)).problems == ()
        (tmp_path / "a.txt").write_text("b.tiff\na.png\na.png\nb.tiff\n")  # the same input in another order
        assert clip.embed(job).written == rows
        assert verify(VerifyJob(output=out)).problems == ()
        (tmp_path / "a.txt").write_text("a.png\nb.tiff\na.png\nb.tiff\n")


def test_an_update_over_archives_counts_their_members(text_weights: Path, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    photos.mkdir()
    job = embed_job(
        source=(str(photos / "*.zip"), str(photos / "*.png")),
        output=tmp_path / "out",
        model=str(text_weights),
        threads=1,
        update=True,
        shard_size=3,
    )
    (photos / "x.png").write_bytes(encode(9))
    for counts in ((4, 2), (5, 2), (5, 7), (1, 1)):
        for name, count in zip("ab", counts, strict=True):
            pack_zip(photos / f"{name}.zip", {f"{n}.png": encode(n) for n in range(count)} | {"c.txt": b""})
        assert clip.embed(job).read == sum(counts) + 1
        assert verify(VerifyJob(output=tmp_path / "out")).problems == ()
    (photos / "a.zip").unlink()
    assert clip.embed(job).read == 2
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()


def test_texts_and_pairs_are_counted(text_weights: Path, tmp_path: Path) -> None:
    lines = ["image,text"]
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(b"no image" if n == 2 else encode(n, frames=1 + (n == 1)))
        lines.append(f"{n}.png,{'very ' * 90 if n == 4 else n}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for options, read in (
        ({"texts": True}, 5),
        ({"text_column": "text", "root": str(tmp_path)}, 5),
        ({"text_column": "text", "root": str(tmp_path), "frames": "all"}, 6),
        ({"text_column": "text", "root": str(tmp_path), "isolate": True}, 5),
    ):
        out = tmp_path / "-".join(options)
        job = embed_job(source=tmp_path / "a.csv", output=out, model=str(text_weights), threads=1, **options)
        assert clip.embed(job).read == read
        assert verify(VerifyJob(output=out)).problems == ()


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_version_0_1_0_do_not_say_how_many_were_read(
    form: str, embedded: Callable[..., clip.EmbedReport], tmp_path: Path
) -> None:
    report = embedded(form)
    part = tmp_path / "out" / PART
    table = pq.read_table(part)
    metadata = pq.read_metadata(part).metadata
    kept = {key: metadata[key] for key in (b"clip.mark", b"clip.ignored") if key in metadata}
    write_part(part, table, kept)
    again = embedded(form)
    assert (again.read, again.resumed) == (report.read, report.read)
    assert verify(VerifyJob(output=tmp_path / "out")).problems == ()
    if form not in ("tar", "frames", "frames in a zip"):  # which cannot be told without a count
        write_part(part, table.slice(1), kept)
        assert any("as many as are listed" in what for what in find_miscounts(tmp_path / "out"))


@pytest.mark.parametrize(
    ("count", "expected", "right"),
    [
        (Count(3, 1, 0, 4, 0, False), Expected(4), True),
        (Count(3, 1, 0, 4, 0, False), Expected(5), False),
        (Count(3, 1, 0, 4, 0, False), Expected(3), False),
        (Count(3, 1, 0, 5, 0, False), Expected(4), False),
        (Count(5, 1, 0, 6, 2, False), Expected(4), True),
        (Count(5, 1, 0, 6, 2, False), Expected(5), False),
        (Count(3, 1, 2, 4, 0, False), Expected(6, "a.zip"), True),
        (Count(3, 1, 2, 4, 0, False), Expected(7, "a.zip"), False),
        (Count(3, 1, 2, 4, 0, True), Expected(7, "a.zip"), True),
        (Count(3, 1, 2, 4, 0, True), Expected(5, "a.zip"), True),
        (Count(3, 1, 2, 4, 0, True), Expected(4, "a.zip"), False),
        (Count(3, 1, 2, 4, 0, False), Expected(9, "a.zip", limit=4), True),
        (Count(3, 1, 2, 4, 0, False), Expected(9, "a.zip", limit=3), False),
        (Count(3, 1, 2, 4, 0, False), Expected(9, "a.zip", limit=5), False),
        (Count(3, 1, 2, 4, 0, False), Expected(None, "a.tar"), True),
        (Count(3, 1, 2, 4, 0, False), Expected(None, "a.tar", limit=4), True),
        (Count(3, 1, 2, 4, 0, False), Expected(None, "a.tar", limit=3), False),
        (Count(3, 1, 0, None, 0, False), Expected(4), True),
        (Count(3, 1, 0, None, 0, False), Expected(5), False),
    ],
)
@pytest.mark.parametrize("frames", ["first", "all"])
def test_counts_are_compared_by_one_rule(count: Count, expected: Expected, right: bool, frames: Any) -> None:
    assert (count.find_error(expected, frames) is None) == right
