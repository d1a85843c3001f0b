"""Archives that are cut, damaged, hostile: what stands before is embedded, one failure for the rest."""

import gzip
import io
import random
import struct
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kit import checkpoints, formula
from kit.jobs import embed_job
from kit.programs import command

import clip
from clip.records import Failure, Item, Member
from clip.sources.source import Source

IMAGES = 20
NAMES = [f"{n:02}.png" for n in range(IMAGES)]


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    formula.picture(number, 60, 40).save(buffer, "PNG")
    return buffer.getvalue()


DATA = {name: encoded(number) for number, name in enumerate(NAMES)}


def make_tar(path: Path, mode: str = "w", content: dict[str, bytes] = DATA, ending: bool = True) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        if not ending:
            archive.fileobj.flush()
            path.write_bytes(path.read_bytes())
            archive.closed = True
    return path


def make_zip(path: Path, method: int = zipfile.ZIP_DEFLATED, content: dict[str, bytes] = DATA) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_streamed_zip(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """As a program that writes to a pipe: sizes stand behind the members."""

    class Pipe(io.RawIOBase):
        def __init__(self, file: io.BufferedWriter) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return self.file.write(data)

    with path.open("wb") as file, zipfile.ZipFile(Pipe(file), "w", method) as archive:  # type: ignore[arg-type]
        for name, data in DATA.items():
            archive.writestr(name, data)
    return path


def members(path: Path, max_bytes: int = 10**9) -> tuple[dict[str, bytes], list[Failure], Counter[str]]:
    """Every member that is given, every failure, and what was ignored."""
    ignored: Counter[str] = Counter()
    source = Source((str(path),))
    found: dict[str, bytes] = {}
    failures: list[Failure] = []
    for shard in source.shards(7, ignored):
        for pack in shard.entries:
            if isinstance(pack, Failure):
                failures.append(pack)
                continue
            assert not isinstance(pack, Item)
            for outcome in source.members(pack, max_bytes, ignored):
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                else:
                    assert isinstance(outcome, Member)
                    assert outcome.item.id not in found
                    found[outcome.item.id] = outcome.data
    return found, failures, ignored


def check_prefix(found: dict[str, bytes], failures: list[Failure], archive: str) -> int:
    """What is given is the archive's beginning, byte for byte, and one failure stands for the rest."""
    assert found == {f"{archive}!{name}": DATA[name] for name in NAMES[: len(found)]}
    assert [(failure.id, failure.stage) for failure in failures] == [(archive, "read")]
    return len(found)


FORMS: dict[str, Callable[[Path], Path]] = {
    "a.tar": make_tar,
    "a.tar.gz": lambda path: make_tar(path, "w:gz"),
    "a.tar.xz": lambda path: make_tar(path, "w:xz"),
    "a.tar.bz2": lambda path: make_tar(path, "w:bz2"),
    "a.zip": make_zip,
    "stored.zip": lambda path: make_zip(path, zipfile.ZIP_STORED),
    "streamed.zip": make_streamed_zip,
}


@pytest.mark.parametrize("name", FORMS)
def test_what_stands_before_a_cut_is_given_and_one_failure_for_the_rest(tmp_path: Path, name: str) -> None:
    path = FORMS[name](tmp_path / name)
    whole = path.read_bytes()
    found, failures, _ = members(path)
    assert (found, failures) == ({f"{name}!{own}": data for own, data in DATA.items()}, [])
    end = len(whole) - (2 * 512 + 10_240 if name == "a.tar" else 1)  # of a tar the padding may go
    counts = []
    for cut in sorted({1, 5, 29, 30, 700, *(random.Random(name).randrange(end) for _ in range(10)), end - 1}):
        path.write_bytes(whole[:cut])
        found, failures, _ = members(path)
        counts.append(check_prefix(found, failures, name))
    assert counts == sorted(counts), "the later the cut, the more is given"
    if name != "a.tar.bz2":  # which compresses in blocks larger than this archive
        assert counts[-1] >= IMAGES - 2


def test_a_tar_without_its_end_mark_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar")
    header_and_data = [512 + -(-len(data) // 512) * 512 for data in DATA.values()]
    for kept in (3, IMAGES):
        path.write_bytes(make_tar(tmp_path / "b.tar").read_bytes()[: sum(header_and_data[:kept])])
        found, failures, _ = members(path)
        assert check_prefix(found, failures, "a.tar") == kept
        assert "no end mark" in failures[0].message


@pytest.mark.parametrize("name", FORMS)
def test_bytes_that_changed_are_found_or_change_nothing(tmp_path: Path, name: str) -> None:
    path = FORMS[name](tmp_path / name)
    whole = path.read_bytes()
    chance = random.Random(name)
    noticed = 0
    for _ in range(40):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        found, failures, ignored = members(path)
        wrong = sum(data != DATA.get(own_id.rpartition("!")[2]) for own_id, data in found.items())
        # A plain tar has no checksums of its members, and names may be what changed; nothing else may pass unseen.
        assert wrong == 0 or name == "a.tar" or failures or len(found) == IMAGES, (place, failures)
        assert len(found) + sum(ignored.values()) == IMAGES or failures, place
        noticed += bool(failures)
    assert noticed > 5


def test_one_damaged_member_of_a_zip_leaves_the_others(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", zipfile.ZIP_STORED)
    whole = path.read_bytes()
    place = whole.index(DATA["05.png"]) + 50
    path.write_bytes(whole[:place] + b"\xff\x00\xff" + whole[place + 3 :])
    found, failures, _ = members(path)
    assert sorted(found) == [f"a.zip!{name}" for name in NAMES if name != "05.png"]
    (failure,) = failures
    assert (failure.id, failure.error) == ("a.zip!05.png", "BadZipFile")


def test_names_lead_nowhere_and_what_is_no_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    names = ["/absolute.png", "../up.png", "./dot.png", "a/../b.png", "new\nline.png", "\udce9.png", "é" * 60 + ".png"]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for name in names:
            header = tarfile.TarInfo(name)
            header.size = len(DATA["00.png"])
            archive.addfile(header, io.BytesIO(DATA["00.png"]))
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
            (tarfile.CHRTYPE, "device.png"),
            (tarfile.DIRTYPE, "folder.png"),
            (tarfile.REGTYPE, ".hidden.png"),
            (tarfile.REGTYPE, "__MACOSX/._a.png"),
            (tarfile.REGTYPE, "text.txt"),
            (tarfile.REGTYPE, "no-extension"),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    found, failures, ignored = members(path)
    expected = ["/absolute.png", "../up.png", "dot.png", "a/../b.png", "new\nline.png", "\\xe9.png", "é" * 60 + ".png"]
    assert list(found) == [f"a.tar!{name}" for name in expected]
    assert failures == []
    assert ignored == {"link to a file": 2, "not a file": 2, "hidden": 2, "not an image": 2}


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        header = zipfile.ZipInfo("link.png")
        header.external_attr = 0o120777 << 16
        archive.writestr(header, "/etc/passwd")
        archive.writestr("../up.png", DATA["00.png"])
    found, failures, ignored = members(tmp_path / "a.zip")
    assert (list(found), failures, ignored) == (["a.zip!../up.png"], [], {"link to a file": 1})


def test_an_encrypted_member_is_a_failure(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # in the local header and in the list
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    found, failures, _ = members(path)
    assert (len(found), [failure.id for failure in failures]) == (IMAGES - 1, ["a.zip!00.png"])
    assert "encrypted" in failures[0].message


def test_members_beyond_the_cap_are_failures_and_cost_no_memory(tmp_path: Path) -> None:
    large = 400_000_000
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        header = tarfile.TarInfo("zeros.png")
        header.size = large
        file.write(header.tobuf())
        for _ in range(large // 1_000_000):
            file.write(bytes(1_000_000))
        with tarfile.open(fileobj=file, mode="w|") as archive:
            small = tarfile.TarInfo("00.png")
            small.size = len(DATA["00.png"])
            archive.addfile(small, io.BytesIO(DATA["00.png"]))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("zeros.png", "w", force_zip64=True) as member:
            for _ in range(large // 1_000_000):
                member.write(bytes(1_000_000))
        archive.writestr("00.png", DATA["00.png"])
    cut = tmp_path / "cut.zip"
    cut.write_bytes((tmp_path / "bomb.zip").read_bytes()[:-30])
    lying = tmp_path / "lying.zip"  # which says that its member is small
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)
    lying.write_bytes(data)
    for path, expected in {
        bomb: ["bomb.tar.gz!zeros.png Failure", "bomb.tar.gz!00.png Member"],
        tmp_path / "bomb.zip": ["bomb.zip!zeros.png Failure", "bomb.zip!00.png Member"],
        cut: ["cut.zip!zeros.png Failure", "cut.zip!00.png Member", "cut.zip Failure"],
        lying: ["lying.zip!zeros.png Failure", "lying.zip!00.png Member"],
    }.items():
        outcomes, grown_mb = outcomes_in_a_process(path)
        assert outcomes == expected
        assert grown_mb < 60, path.name


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path) -> None:
    block = tarfile.TarInfo("x" * 90 + ".txt").tobuf()
    path = make_tar(tmp_path / "a.tar", content={"00.png": DATA["00.png"]})
    path.write_bytes(block * 60_000 + path.read_bytes())
    outcomes, grown_mb = outcomes_in_a_process(path)
    assert outcomes == ["a.tar!00.png Member"]
    assert grown_mb < 20


def outcomes_in_a_process(path: Path) -> tuple[list[str], int]:
    """What an archive gives in a separate process, and by how many MB its memory grows meanwhile."""
    ran = subprocess.run(command("read_archive", path), stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    *outcomes, grown_mb = ran.stdout.splitlines()
    return outcomes, int(grown_mb)


def test_an_enormous_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        header = tarfile.TarInfo("././@PaxHeader")
        header.type, header.size = tarfile.XHDTYPE, 2_000_000_000
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1_000_000))
    found, (failure,), _ = members(path)
    assert found == {}
    assert "headers of 2,000,000,000 bytes" in failure.message


def test_attributes_that_hold_for_all_of_an_archive_are_refused_where_they_add_up(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range(12):
            file.write(tarfile.TarInfo.create_pax_global_header({f"note{number}": "x" * 100_000}))
            file.write(tarfile.TarInfo(f"{number}.txt").tobuf())
        file.write(make_tar(tmp_path / "b.tar").read_bytes())
    found, (failure,), _ = members(path)
    assert found == {}
    assert "headers of 1," in failure.message


def test_an_enormous_list_of_holes_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("sparse.png")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # the list goes on in blocks of their own
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = (b"0" * 11 + b" ") * 42
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(block)
        for _ in range(4000):
            file.write(more + b"\1" + bytes(7))
    found, (failure,), _ = members(tmp_path / "a.tar.gz")
    assert found == {}
    assert "a list of holes of more than 1,000,000 bytes" in failure.message


def test_a_run_over_damaged_archives_ends_with_all_of_it_told(tmp_path: Path) -> None:
    weights = checkpoints.write(tmp_path, texts=False)
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in/good.tar")
    cut = make_tar(tmp_path / "in/cut.tar.gz", "w:gz")
    cut.write_bytes(cut.read_bytes()[:-3000])
    (tmp_path / "in/none.tar").write_bytes(b"no archive" * 200)
    (tmp_path / "in/empty.zip").touch()
    out = tmp_path / "out"
    before = {path for path in tmp_path.rglob("*")}
    report = clip.embed(embed_job(source=f"{tmp_path}/in/*", output=out, model=str(weights), threads=1))
    ids = pq.read_table(out / "embeddings")["id"].to_pylist()
    failed = pq.read_table(out / "failures")["id"].to_pylist()
    assert (report.written, report.failed, report.read) == (len(ids), len(failed), len(ids) + len(failed))
    assert [own_id for own_id in ids if own_id.startswith("good")] == [f"good.tar!{name}" for name in NAMES]
    assert 10 < sum(own_id.startswith("cut") for own_id in ids) < IMAGES
    assert sorted(failed) == ["cut.tar.gz", "empty.zip", "none.tar"]
    assert {path for path in tmp_path.rglob("*") if out not in path.parents and path != out} == before
