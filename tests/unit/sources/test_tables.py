"""Columns of every type mean what they hold, or are refused; lists of images are frames; a bad page costs its group."""

import io
import json
import struct
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import checkpoints, formula
from kit.jobs import embed_job

import clip
from clip.batch.verify import verify
from clip.errors import InputError
from clip.jobs.options import Columns
from clip.jobs.verify import VerifyJob
from clip.records import ContainerPart, Failure, Item, Member
from clip.sources.source import Source

UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_png(number: int) -> bytes:
    buffer = io.BytesIO()
    formula.picture(number, 8, 6).save(buffer, "PNG")
    return buffer.getvalue()


PNG = [make_png(number) for number in range(4)]
Outcome = Member | Failure | Item


def write_parquet(path: Path, table: pa.Table, rows: int = 3) -> Path:
    # Plain values without compression, so that only checksums tell that bytes changed.
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True, **plain)
    return path


def write_stream(path: Path, table: pa.Table, rows: int = 3) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_arrow(path: Path, table: pa.Table, rows: int = 3) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


FORMATS = {"a.parquet": write_parquet, "a.arrow": write_stream, "b.arrow": write_arrow}
formats = pytest.mark.parametrize("name", list(FORMATS))


def entries(path: Path, size: int = 4, **columns: Any) -> list[Any]:
    source = Source((str(path),), columns=Columns(**columns)).with_types()
    return [entry for shard in source.shards(size, Counter()) for entry in shard.entries]


def outcomes(path: Path, size: int = 4, **columns: Any) -> list[Outcome]:
    """What a run reads: each part gives as many outcomes as its listing says."""
    source = Source((str(path),), columns=Columns(**columns)).with_types()
    found: list[Outcome] = []
    for entry in entries(path, size, **columns):
        if not isinstance(entry, ContainerPart):
            found.append(entry)
            continue
        members = list(source.members(entry, 10**6, Counter()))
        assert len(members) == entry.members
        assert entry.id not in [member.id for member in members]
        found += members
    assert len({outcome.id for outcome in found}) == len(found)
    return found


def ids(found: list[Outcome]) -> list[str]:
    """Ids, those of failures with a mark before them."""
    return [f"!{one.id}" if isinstance(one, Failure) else one.id for one in found]


TEXT_FORMS: dict[str, tuple[pa.Array, list[str]]] = {
    "string": (pa.array(["x", "y"]), ["x", "y"]),
    "large": (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
    "view": (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    "dictionary": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "dictionary of numbers": (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
    "runs": (pc.call_function("run_end_encode", [pa.array(["x", "y"])]), ["x", "y"]),
    "uuid": (pa.array([one.bytes for one in UUIDS], pa.uuid()), list(map(str, UUIDS))),
    "json": (pa.array(['"x"', "5"], pa.json_()), ['"x"', "5"]),
    "integer": (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
    "date": (pa.array([date(2024, 5, 17), date(1, 1, 1)]), ["2024-05-17", "0001-01-01"]),
    "decimal": (pa.array([Decimal("1.50"), Decimal(-2)]), ["1.50", "-2.00"]),
}
NO_TEXT: dict[str, pa.Array] = {
    "binary": pa.array([b"x", b"y"]),
    "large binary": pa.array([b"x", b"y"], pa.large_binary()),
    "binary view": pa.array([b"x", b"y"], pa.binary_view()),
    "fixed": pa.array([b"x", b"y"], pa.binary(1)),
    "dictionary of binary": pa.array([b"x", b"y"]).dictionary_encode(),
    "duration": pa.array([1, 2], pa.duration("s")),
    "list": pa.array([["x"], ["y"]]),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
}


def write_either(tmp_path: Path, table: pa.Table, *kinds: pa.DataType) -> list[Path]:
    """A file of each format that keeps these types."""
    paths = [write_stream(tmp_path / "a.arrow", table)]
    if not any(pa.types.is_run_end_encoded(kind) for kind in kinds):
        paths.append(write_parquet(tmp_path / "a.parquet", table))
    return paths


@pytest.mark.parametrize("kind", list(TEXT_FORMS))
def test_ids_and_kept_columns_of_each_type_have_their_usual_text_form(tmp_path: Path, kind: str) -> None:
    column, texts = TEXT_FORMS[kind]
    table = pa.table({"image": PNG[:2], "path": ["a.png", "b.png"], "n": column})
    for path in write_either(tmp_path, table, column.type):
        for entry in ("image", "path"):
            found = outcomes(path, entry=entry, id="n", keep=("n",))
            assert ids(found) == [text.replace("\\", "\\\\") for text in texts]
            values = [(one.item if isinstance(one, Member) else one).values for one in found]  # type: ignore[union-attr]
            assert values == [(text,) for text in texts]
        if kind in ("string", "large", "view", "dictionary", "runs", "json"):
            assert ids(outcomes(path, entry="n")) == texts, "as paths"
            found = entries(path, entry="n", texts=True)
            assert [one.values for one in found] == [(text,) for text in texts]
        elif kind != "uuid":
            with pytest.raises(
                InputError, match=r"column 'n' is of .*, expected texts. Name another with columns.text"
            ):
                entries(path, entry="image", text="n")


@pytest.mark.parametrize("kind", list(NO_TEXT))
def test_what_has_no_text_form_is_refused_by_column_and_type(tmp_path: Path, kind: str) -> None:
    table = pa.table({"image": PNG[:2], "path": ["a.png", "b.png"], "n": NO_TEXT[kind]})
    for path in write_either(tmp_path, table):
        for columns in ({"id": "n"}, {"keep": ("n",)}, {"text": "n"}, {"texts": True, "entry": "n"}):
            for entry in ("image", "path"):
                with pytest.raises(InputError, match=r"column 'n' is of \w+.*, expected texts"):
                    entries(path, **{"entry": entry, **columns})
        if kind == "list":
            with pytest.raises(InputError, match="Write a row for each"):
                entries(path, entry="image", text="n")


def test_numbers_of_a_type_that_only_another_library_knows_are_not_kept(tmp_path: Path) -> None:
    unknown = pa.field("n", pa.int64(), metadata={"ARROW:extension:name": "acme.period"})
    schema = pa.schema([("path", pa.string()), unknown])
    path = write_parquet(tmp_path / "a.parquet", pa.table([["a.png"], [648]], schema=schema))
    for columns in ({"id": "n"}, {"keep": ("n",)}):
        with pytest.raises(InputError, match=r"column 'n' is of extension type acme\.period"):
            entries(path, **columns)


images = st.sampled_from([PNG[0], PNG[1], b"", None])
ROWS = st.lists(st.none() | st.lists(images, max_size=3), min_size=1, max_size=9)
LIST_TYPES = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]


@settings(deadline=None, max_examples=120)
@given(ROWS, st.sampled_from(list(FORMATS)), st.sampled_from(LIST_TYPES), st.booleans(), st.integers(1, 4))
def test_lists_of_images_are_frames_of_their_row(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[bytes | None] | None],
    name: str,
    kind: Callable[[pa.DataType], pa.DataType],
    in_struct: bool,
    group: int,
) -> None:
    values: Any = [row and [{"bytes": one, "path": None} for one in row] if in_struct else row for row in rows]
    kept = [f"row {number}" for number in range(len(rows))]
    kind = pa.list_ if name == "a.parquet" else kind  # which has one kind of list
    table = pa.table({"image": pa.array(values, kind(IMAGE if in_struct else pa.binary())), "n": kept})
    path = FORMATS[name](tmp_path_factory.mktemp("lists") / name, table, group)
    found = outcomes(path, keep=("n",))
    expected: list[str] = []
    for number, row in enumerate(rows):
        own = f"{name}!{number}"
        expected += (
            [f"{'!' if one is None else ''}{own}#{place}" for place, one in enumerate(row)] if row else [f"!{own}"]
        )
    assert ids(found) == expected
    for one in found:
        if isinstance(one, Member):
            assert one.item.values == (f"row {one.id.partition('!')[2].partition('#')[0]}",)


@formats
def test_a_list_of_paths_names_the_images_of_a_row(tmp_path: Path, name: str) -> None:
    table = pa.table({"path": [["a.png", "b.png"], [], None, ["c.png", None]], "key": list("wxyz")})
    path = FORMATS[name](tmp_path / name, table)
    assert ids(outcomes(path)) == ["a.png", "b.png", f"!{name}!1", f"!{name}!2", "c.png", f"!{name}!3#1"]
    assert ids(outcomes(path, id="key")) == ["w#0", "w#1", f"!{name}!1", f"!{name}!2", "z#0", f"!{name}!3#1"]


@formats
def test_a_row_without_a_path_or_an_id_is_a_failure(tmp_path: Path, name: str) -> None:
    table = pa.table({"path": ["a.png", None, "", "d.png"], "key": ["w", "x", "y", None], "t": ["1", None, "", "4"]})
    path = FORMATS[name](tmp_path / name, table)
    assert ids(outcomes(path, id="key")) == ["w", f"!{name}!1", f"!{name}!2", f"!{name}!3"]
    assert [one.values for one in entries(path, entry="t", texts=True)] == [("1",), (None,), ("",), ("4",)]
    assert ids(entries(path, entry="t", texts=True, id="key")) == ["w", "x", "y", f"!{name}!3"]


def damage(path: Path, group: int, column: str) -> None:
    """Change bytes at the end of the last page of a column of a row group."""
    row_group = pq.read_metadata(path).row_group(group)
    chunk = next(
        row_group.column(n) for n in range(row_group.num_columns) if row_group.column(n).path_in_schema == column
    )
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    place = start + chunk.total_compressed_size - 5
    data[place : place + 4] = bytes(byte ^ 0xFF for byte in data[place : place + 4])
    path.write_bytes(data)


@pytest.mark.parametrize("holds", [True, False])
def test_a_bad_page_costs_the_rows_of_its_group_and_verify_agrees(tmp_path: Path, holds: bool) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / f"photos/{number}.png").write_bytes(make_png(number))
    paths = [str(tmp_path / f"photos/{number}.png") for number in range(9)]
    column = [make_png(number) for number in range(9)] if holds else paths
    table = pa.table({"image": column, "key": [f"k{number}" for number in range(9)]})
    weights = checkpoints.write(tmp_path, texts=False)
    for columns in ({}, {"id_column": "key"}):
        path = write_parquet(tmp_path / "a.parquet", table)
        damage(path, 1, "image")
        out = tmp_path / f"out{len(columns)}"
        report = clip.embed(embed_job(source=path, output=out, model=str(weights), threads=1, **columns))
        assert (report.read, report.written, report.failed) == (9, 6, 3)
        failures = pq.read_table(out / "failures").to_pylist()
        named = columns and holds  # a list's row has no other name than its place
        assert [row["id"] for row in failures] == [f"k{n}" if named else f"a.parquet!{n}" for n in (3, 4, 5)]
        own = "k{}" if columns else "a.parquet!{}" if holds else f"{tmp_path}/photos/{{}}.png"
        assert pq.read_table(out / "embeddings")["id"].to_pylist() == [own.format(n) for n in (0, 1, 2, 6, 7, 8)]
        for number, row in enumerate(failures, 3):
            assert row["message"].startswith(f"row {number} is lost, as its group of rows cannot be read (")
        checked = verify(VerifyJob(output=out, sample=9))
        assert (checked.problems, checked.read, checked.failed) == ((), 9, 3)


def test_lists_that_are_lost_with_their_group_are_counted_by_the_footer(tmp_path: Path) -> None:
    table = pa.table({"image": [[PNG[0]], [PNG[1], PNG[2]], [], [PNG[0]] * 3, [PNG[1]]]})
    lost, rest = [f"!a.parquet!{n}" for n in range(3)], [*(f"a.parquet!3#{n}" for n in range(3)), "a.parquet!4#0"]
    path = write_parquet(tmp_path / "a.parquet", table)
    damage(path, 0, "image.list.element")
    assert ids(outcomes(path)) == [*lost, *rest], "of a group that cannot even be begun, its rows"
    pq.write_table(table, path, row_group_size=3, write_page_checksum=True, data_page_size=1, write_batch_size=1)
    damage(path, 0, "image.list.element")
    assert ids(outcomes(path)) == [*lost, "!a.parquet!2~2", *rest], "nobody knows of which row the fourth was"


def make_dataset(folder: Path, numbers: list[int], files: int = 2) -> None:
    """A split as save_to_disk writes it, and a cache that does not belong to it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        rows = [{"bytes": make_png(n), "path": None} for n in numbers[number::files]]
        write_stream(folder / name, pa.table({"image": pa.array(rows, IMAGE), "n": numbers[number::files]}), 2)
    write_stream(folder / "cache-0.arrow", pa.table({"image": pa.array([{"bytes": b"x", "path": None}], IMAGE)}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_that_was_saved_to_disk_is_read_by_what_it_says_of_itself(tmp_path: Path) -> None:
    make_dataset(tmp_path / "one", [0, 1, 2, 3, 4])
    first, second = (f"data-0000{n}-of-00002.arrow" for n in range(2))
    found = outcomes(tmp_path / "one", 2, keep=("n",))
    assert ids(found) == [f"{first}!0", f"{first}!1", f"{first}!2", f"{second}!0", f"{second}!1"]
    assert [one.item.values for one in found if isinstance(one, Member)] == [("0",), ("2",), ("4",), ("1",), ("3",)]
    assert [one.data for one in found if isinstance(one, Member)] == [make_png(n) for n in (0, 2, 4, 1, 3)]
    for name in ("train", "test"):
        make_dataset(tmp_path / "both" / name, [5], files=1)
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert ids(outcomes(tmp_path / "both")) == [f"{name}/data-00000-of-00001.arrow!0" for name in ("train", "test")]
    state = tmp_path / "one/state.json"
    for content, told in (
        ('{"_data_files": [{"filename": "../x.arrow"}]}', r"names '\.\./x\.arrow', expected files of its folder"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow: cannot be read"),
        ('{"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}', "in another order than its tables"),
        ("{", r"state\.json: cannot be read"),
        ("[]", r"state\.json: cannot be read"),
    ):
        state.write_text(content)
        with pytest.raises(InputError, match=told):
            entries(tmp_path / "one")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["a.arrow", "b.arrow"]), st.data())
def test_of_a_damaged_arrow_file_no_row_is_lost_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    table = pa.table({"image": PNG, "key": list("wxyz")})
    path = FORMATS[name](tmp_path_factory.mktemp("arrow") / name, table, 2)
    source = Source((str(path),), columns=Columns(id="key"))
    parts = entries(path, 2, id="key")
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))])
    path.write_bytes(whole[:place] if data.draw(st.booleans()) else whole[:place] + flipped + whole[place + 1 :])
    for part in parts:
        found = list(source.members(part, 10**6, Counter()))
        if found[-1].id == part.id:
            assert isinstance(found[-1], Failure)
            assert len(found) - 1 < part.members
        else:
            assert len(found) == part.members


def test_offsets_that_lead_out_of_an_arrow_file_are_no_way_to_read_or_to_crash(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "a.arrow", pa.table({"image": [b"x" * 1111, b"y" * 2222], "key": ["v", "w"]}))
    (part,) = entries(path, id="key")
    whole = path.read_bytes()
    offsets = struct.pack("<3i", 0, 1111, 3333)
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, struct.pack("<3i", 0, 2**30, 2**31 - 1)))
    found = list(Source((str(path),), columns=Columns(id="key")).members(part, 10**6, Counter()))
    assert all(isinstance(one, Failure) for one in found)
    assert ids(found) == ["!v", "!w"]


def test_a_path_in_a_struct_may_have_any_bytes_and_the_struct_any_strings(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string_view())])
    values = [{"bytes": None, "path": "b.png"}, {"bytes": PNG[0], "path": "x"}]
    path = write_stream(tmp_path / "a.arrow", pa.table({"image": pa.array(values, kind)}))
    found = outcomes(path)
    assert [type(one) for one in found] == [Item, Member]
    encoded = pa.array([np.frombuffer(b"caf\xe9.png", np.uint8).tobytes()]).cast(pa.string(), safe=False)
    structs = pa.StructArray.from_arrays([pa.array([None], pa.binary()), encoded], ["bytes", "path"])
    (item,) = outcomes(write_parquet(tmp_path / "a.parquet", pa.table({"image": structs})))
    assert item.path == "caf\udce9.png"
