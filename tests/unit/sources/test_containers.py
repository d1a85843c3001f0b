"""Each member that a container's part counts becomes one outcome, or is counted as ignored."""

import io
import tempfile
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import formula

from clip.errors import InputError
from clip.jobs.options import Columns
from clip.records import ContainerPart, Failure, Item, Member
from clip.sources.kinds import CONTAINERS, ENDINGS, find_container
from clip.sources.lists import LIST_ENDINGS
from clip.sources.source import Source

MAX_BYTES = 2000
LARGE = bytes(MAX_BYTES + 1)


def make_png(number: int) -> bytes:
    buffer = io.BytesIO()
    formula.picture(number, 8, 6).save(buffer, "PNG")
    return buffer.getvalue()


PNG = make_png(0)
Outcome = Member | Failure | Item

# Name and content of a zip's entry, and what is wrong with it in the archive's list.
entries = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "a.png",
                "a.PNG",
                "b/a.png",
                "./a.png",
                ".a.png",
                "b/.c/a.png",
                "a.txt",
                "a",
                "b/",
                ".b/",
                "é.png",
                "../a.png",
            ]
        ),
        st.sampled_from([PNG, b"", b"text", LARGE]),
        st.sampled_from(
            ["", "", "", "link", "damaged", "encrypted", "elsewhere", "far", "unknown method", "says less", "says more"]
        ),
    ),
    max_size=12,
)


def write_zip(path: Path, content: list[tuple[str, bytes, str]], method: int = zipfile.ZIP_STORED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # names that occur twice
        for name, data, fault in content:
            header = zipfile.ZipInfo(name)
            header.compress_type = method
            if fault == "link":
                header.external_attr = 0o120777 << 16
            archive.writestr(header, data)
            # The list is written at the end, from these.
            header.CRC ^= fault == "damaged"
            header.flag_bits |= fault == "encrypted"
            header.header_offset += {"elsewhere": 7, "far": 2**63}.get(fault, 0)
            header.compress_type = 99 if fault == "unknown method" else method
            header.file_size += {"says less": -1 if data else 0, "says more": 1}.get(fault, 0)


row_bytes = st.sampled_from([PNG, PNG, b"", b"text", LARGE, None])
structs = st.one_of(
    st.none(),
    st.fixed_dictionaries({"bytes": row_bytes, "path": st.sampled_from([None, "", "a.png", "https://host/a.png"])}),
)
row_ids = st.sampled_from([None, "x", "y", "é"])


def write_table(path: Path, values: list[Any], ids: list[str | None], row_group_size: int, *, struct: bool) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({"image": pa.array(values, kind), "key": pa.array(ids, pa.string())})
    pq.write_table(table, path, row_group_size=row_group_size)


def list_parts(source: Source, shard_size: int) -> list[ContainerPart]:
    parts = [entry for shard in source.shards(shard_size, Counter()) for entry in shard.entries]
    assert all(isinstance(part, ContainerPart) for part in parts)
    return [part for part in parts if isinstance(part, ContainerPart)]


def read(source: Source, part: ContainerPart) -> tuple[list[Outcome], int]:
    """Every outcome of a part, and how many members were ignored."""
    ignored: Counter[str] = Counter()
    outcomes = list(source.members(part, MAX_BYTES, ignored))
    assert len({outcome.id for outcome in outcomes}) == len(outcomes)
    return outcomes, ignored.total()


def check_whole(source: Source, shard_size: int) -> int:
    """Each part gives, or ignores, exactly as many as it says. Returns how many that are."""
    parts = list_parts(source, shard_size)
    for part in parts:
        outcomes, ignored = read(source, part)
        assert len(outcomes) + ignored == part.members
        assert part.id not in [outcome.id for outcome in outcomes]
        for limit in (1, 3):
            limited, ignored = read(source, replace(part, limit=limit))
            assert limited == outcomes[:limit]
            assert min(part.members, limit) <= len(limited) + ignored <= part.members
    return sum(part.members or 0 for part in parts)


@settings(deadline=None, max_examples=150)
@given(entries, st.integers(1, 5), st.sampled_from([(), ("*.png",), ("b/*", "a*")]))
@example([("a", b"text", ""), ("a", b"", ""), ("a", PNG, ""), ("b/", b"", ""), ("b/a", PNG, "")], 2, ())
def test_a_zip_gives_as_many_outcomes_as_it_lists_files(
    content: list[tuple[str, bytes, str]], shard_size: int, globs: tuple[str, ...]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.zip")
        write_zip(path, content)
        files = [name for name, _, _ in content if not name.endswith("/")]
        source = Source((str(path),), globs)
        if files:
            assert check_whole(source, shard_size) == len(files)
        else:
            with pytest.raises(InputError, match="names no image"):
                list_parts(source, shard_size)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.booleans(), st.booleans(), st.integers(1, 5), st.integers(1, 7))
def test_a_table_gives_as_many_outcomes_as_it_has_rows(
    data: st.DataObject, struct: bool, with_ids: bool, row_group_size: int, shard_size: int
) -> None:
    values = data.draw(st.lists(structs if struct else row_bytes, min_size=1, max_size=12))
    ids = data.draw(st.lists(row_ids, min_size=len(values), max_size=len(values)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        write_table(path, values, ids, row_group_size, struct=struct)
        source = Source((str(path),), columns=Columns(id="key" if with_ids else None))
        assert check_whole(source, shard_size) == len(values)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(["stored.zip", "deflated.zip", "a.parquet"]), st.integers(1, 7), st.booleans())
def test_in_a_file_that_is_damaged_after_its_listing_one_failure_stands_for_all_that_is_missing(
    data: st.DataObject, name: str, shard_size: int, is_cut: bool
) -> None:
    numbers = range(data.draw(st.integers(1, 9)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        if name == "a.parquet":
            write_table(path, [make_png(number) for number in numbers], [str(n) for n in numbers], 2, struct=False)
        else:
            method = zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED
            write_zip(path, [(f"{number}.png", make_png(number), "") for number in numbers], method)
        source = Source((str(path),))
        parts = list_parts(source, shard_size)
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))])
        path.write_bytes(whole[:place] if is_cut else whole[:place] + flipped + whole[place + 1 :])
        for part in parts:
            outcomes, ignored = read(source, part)
            assert part.members is not None
            if outcomes and outcomes[-1].id == part.id:
                assert isinstance(outcomes[-1], Failure)
                assert len(outcomes) - 1 + ignored < part.members
            else:
                assert len(outcomes) + ignored == part.members


def test_a_container_that_shrank_since_it_was_listed_has_a_failure_for_the_rest(tmp_path: Path) -> None:
    zip_path, table_path = tmp_path / "a.zip", tmp_path / "a.parquet"
    for count in (5, 3):
        write_zip(zip_path, [(f"{number}.png", make_png(number), "") for number in range(count)])
        write_table(table_path, [make_png(number) for number in range(count)], ["x"] * count, 2, struct=False)
        if count == 5:
            parts = [*list_parts(Source((str(zip_path),)), 2), *list_parts(Source((str(table_path),)), 2)]
    found = [[(outcome.id, type(outcome).__name__) for outcome in read(Source(()), part)[0]] for part in parts]
    assert found == [
        [("a.zip!0.png", "Member"), ("a.zip!1.png", "Member")],
        [("a.zip!2.png", "Member"), ("a.zip!2...", "Failure")],
        [("a.zip!4...", "Failure")],
        [("a.parquet!0", "Member"), ("a.parquet!1", "Member")],
        [("a.parquet!1...", "Failure")],  # numbered by row groups; the row that is left may be another
        [("a.parquet!2...", "Failure")],
    ]


def test_a_tar_and_a_zip_without_its_list_do_not_say_how_many_they_hold(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", [("a.png", PNG, ""), ("b.png", PNG, "")])
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    (tmp_path / "a.tar").write_bytes(b"")
    for name in ("a.zip", "a.tar"):
        (part,) = list_parts(Source((str(tmp_path / name),)), 1)
        assert (part.members, part.start, part.stop) == (None, 0, None)


def test_a_row_whose_struct_holds_neither_bytes_nor_a_path_is_a_failure(tmp_path: Path) -> None:
    values = [{"bytes": None, "path": None}, {"bytes": None, "path": ""}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for column in (pa.array(values, kind), pa.array(values[:1] * 3)):  # of which the second is of nulls alone
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        (part,) = list_parts(source := Source((str(tmp_path / "a.parquet"),)), 9)
        outcomes, _ = read(source, part)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        assert [failure.id for failure in failures] == [f"a.parquet!{n}" for n in range(3)]
        assert {failure.error for failure in failures} == {"InputError"}
        assert failures[0].message == "its row has no image in column 'image', expected one. Leave it out."


def test_every_ending_belongs_to_one_kind_and_is_known_in_any_case() -> None:
    assert len(set(ENDINGS)) == len(ENDINGS)
    assert set(ENDINGS) == {*LIST_ENDINGS, *(ending for container in CONTAINERS for ending in container.endings)}
    for container in CONTAINERS:
        for ending in container.endings:
            assert ending == ending.lower()
            assert find_container(f"x{ending.upper()}") is container
            assert find_container(f"https://host/x{ending}?signature=a.zip") is container
    assert find_container("x.jpg") is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [([PNG] * 5, "rows are missing"), ([[PNG], [PNG, PNG], [], [PNG] * 3, [PNG]], "images are missing")],
    ids=["images", "lists"],
)
def test_a_table_whose_footer_counts_other_rows_than_it_holds_has_a_failure_for_them(
    tmp_path: Path, rows: list[Any], told: str
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array(rows)})
    pq.write_table(table, path, row_group_size=3, write_statistics=False, store_schema=False)
    whole = path.read_bytes()
    footer_bytes = int.from_bytes(whole[-8:-4], "little") + 8
    messages = Counter[str]()
    for place in range(len(whole) - footer_bytes, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        source = Source((str(path),))
        try:
            parts = list_parts(source, 3)
        except InputError:
            continue
        for part in parts:
            outcomes, _ = read(source, part)
            if isinstance(outcomes[-1], Failure):
                messages[outcomes[-1].message] += 1
            if outcomes[-1].id == part.id:
                assert len(outcomes) - 1 <= (part.members or 0)
            else:
                assert len(outcomes) == part.members, "a failure for each row that is lost"
    assert any(told in message for message in messages), "pyarrow gives others without a word"
