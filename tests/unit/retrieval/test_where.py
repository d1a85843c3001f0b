"""Conditions in SQL on the columns of rows: what they find, and that they reach nothing else."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from clip.errors import InputError, MissingExtraError
from clip.retrieval.where import filter_rows

TABLE = pa.table(
    {
        "id": ["a.jpg", "b.jpg", "c.png", "d.png"],
        "width": pa.array([640, 1200, None, 2000], pa.int32()),
        "row": [3, 2, 1, 0],
        "a name": ["x", "it's", 'a "b"', None],
        'the "longest" name': [1, 2, 3, 4],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("width > 1000", [1, 3]),
        ("width > 1000 AND id LIKE '%.png'", [3]),
        ("WIDTH IS NULL or width = 640", [0, 2]),
        ("row <= 1", [2, 3]),
        ("\"a name\" = 'it''s'", [1]),
        ('"the ""longest"" name" > 3', [3]),
        ("not (width > 1000)", [0]),
        ("null", []),
        ("true -- all of them", [0, 1, 2, 3]),
        ("regexp_matches(id, '^[ab]')", [0, 1]),
    ],
)
def test_the_rows_for_which_it_is_true_are_found_in_order(condition: str, rows: list[int]) -> None:
    assert filter_rows(TABLE, condition).tolist() == rows


def test_many_rows_keep_their_places() -> None:
    chunks = [pa.table({"id": [f"{c}-{n}" for n in range(5_000)], "n": range(c, c + 5_000)}) for c in range(40)]
    found = filter_rows(pa.concat_tables(chunks), "n % 1000 = 0")
    numbers = pa.concat_tables(chunks).column("n").to_pylist()
    assert found.tolist() == [place for place, n in enumerate(numbers) if n % 1000 == 0]
    assert filter_rows(TABLE.slice(0, 0), "width > 1").tolist() == []


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("heigth > 3", '"heigth" not found'),
        ("width >", "syntax error"),
        ("", "Parser Error"),
        ("1 = 1) or (1 = 1", "syntax error"),
        ("width > 1; drop table x", "Parser Error"),
        ("true limit 1", "Parser Error"),
        ("sum(width) > 3", "cannot contain aggregates"),
        ("id", "Could not convert string 'a.jpg' to BOOL"),
        ("id = '\udcff'", "surrogate"),
    ],
)
def test_another_text_than_a_condition_is_refused_in_one_line(condition: str, words: str) -> None:
    with pytest.raises(InputError, match=r"expected a condition on the columns id, width, row, a name, the") as caught:
        filter_rows(TABLE, condition)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["read_csv('{file}')", "read_text('{file}')", "'{file}'", "glob('{folder}/*')", "table_of_python", "secret.csv"],
)
def test_a_condition_reaches_no_file_and_no_variable(source: str, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    table_of_python = TABLE
    assert table_of_python.num_rows
    relation = source.format(file=file, folder=tmp_path)
    with pytest.raises(InputError, match=r"Permission Error|Catalog Error"):
        filter_rows(TABLE, f"(SELECT count(*) FROM {relation}) > 0")


@pytest.mark.parametrize("command", ["SET enable_external_access = true", "INSTALL httpfs", "COPY x TO 'y'"])
def test_a_condition_changes_no_setting(command: str) -> None:
    with pytest.raises(InputError):
        filter_rows(TABLE, command)


def test_without_duckdb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"where: needs duckdb, .* pip install 'clip-turbo\[search\]'"):
        filter_rows(TABLE, "width > 3")
