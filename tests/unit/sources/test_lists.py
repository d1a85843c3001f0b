"""Each row of a list becomes an entry or a failure that names its line; a list of doubtful form is refused."""

import csv
import io
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip.errors import InputError
from clip.jobs.options import Columns
from clip.records import Failure, Item
from clip.sources import delimited, text_file
from clip.sources.source import Source


def listed(path: Path, **columns: Any) -> list[Item | Failure]:
    entries = [
        entry
        for shard in Source((str(path),), columns=Columns(**columns)).shards(9, Counter())
        for entry in shard.entries
    ]
    assert all(isinstance(entry, (Item, Failure)) for entry in entries)
    return [entry for entry in entries if isinstance(entry, (Item, Failure))]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tell(entries: list[Item | Failure]) -> list[Any]:
    """The id of each entry with its kept values, of a failure its id alone."""
    return [(entry.id, *entry.values) if isinstance(entry, Item) else entry.id for entry in entries]


def refusal(path: Path, **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        listed(path, **columns)
    return str(caught.value).removeprefix(f"{path.parent}/")


# A field as a program may write it; the count of rows is known from the writing, not from any reader.
fields = st.text(st.sampled_from(list("ab \",;\t'\n\r.é\\")), max_size=6)
delimiters = st.sampled_from([",", "\t", ";"])
ends = st.sampled_from(["\n", "\r\n", "\r"])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(fields, fields), max_size=8), delimiters, ends, st.booleans(), st.sampled_from(["csv", "tsv"])
)
@example([("\r\r\n", "a\r\r\n\r\nb")], ",", "\n", False, "csv")
def test_what_csv_writes_is_read_row_by_row_whatever_it_holds(
    rows: list[tuple[str, str]], delimiter: str, end: str, mark: bool, ending: str
) -> None:
    text = io.StringIO()
    # By itself it leaves a \r without quotes where lines end with \n, and the other way round.
    several = any(set(field) & set("\r\n") for row in rows for field in row)
    quoting = csv.QUOTE_ALL if several else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["path", "said", "n"])
    writer.writerows((f"{number}.png", *row) for number, row in enumerate(rows))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), f"a.{ending}", ("\ufeff" if mark else "") + text.getvalue())
        if not rows:
            assert "names no image" in refusal(path)
            return
        # `standard`, as texts of several lines may look like rows, which the default refuses to guess about.
        found = listed(path, quoting="standard", keep=("said", "n"), delimiter=delimiter)
    assert tell(found) == [(f"{number}.png", *row) for number, row in enumerate(rows)]


plain = st.text(st.sampled_from(list("ab \",;'.é\\")), min_size=1, max_size=8)


@settings(deadline=None, max_examples=500)
@given(
    st.lists(plain, min_size=1, max_size=12),
    st.sampled_from(["auto", "standard", "none"]),
    ends,
    st.sampled_from(["\t", ","]),
    st.sampled_from([("path", "said"), ("path", "said", "n"), ("said", "path"), ("path",)]),
)
@example(['"Hello', "b", 'for 12"'], "auto", "\n", "\t", ("path", "said"))
@example(['"Hello" she said', '"', '""'], "auto", "\n", "\t", ("path", "said"))
@example(['"a', 'b,c"'], "auto", "\n", ",", ("path", "said"))
@example(['"a', 'b "'], "auto", "\n", ",", ("path", "said", "n"))
def test_of_captions_written_as_they_are_each_line_is_a_row_a_failure_or_the_list_is_refused(
    captions: list[str], quoting: str, end: str, delimiter: str, head: tuple[str, ...]
) -> None:
    own = {"path": "{}.png", "said": "", "n": "7"}
    rows = [
        delimiter.join(caption if name == "said" else own[name].format(number) for name in head)
        for number, caption in enumerate(captions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "a.tsv", end.join([delimiter.join(head), *rows]) + end)
        try:
            found = listed(path, keep=tuple(set(head) - {"path"}), quoting=quoting, delimiter=delimiter)
        except InputError as exc:
            assert quoting != "none"
            assert "a quote opens in line" in str(exc)
            return
    if quoting == "standard":  # the user's word that quotes are quotes
        return
    assert len(found) == len(captions)
    for number, (entry, caption) in enumerate(zip(found, captions, strict=True)):
        if isinstance(entry, Failure):
            assert entry.id == f"a.tsv:{number + 2}"
            assert '"' in caption or delimiter in caption
        else:
            assert entry.id == f"{number}.png"
            assert "said" not in head or caption in entry.values or caption.startswith('"')


def test_two_captions_that_begin_with_a_quote_do_not_swallow_what_is_between(tmp_path: Path) -> None:
    lines = [f"{number}.jpg\tcaption {number}" for number in range(1000)]
    lines[109], lines[998] = '109.jpg\t"Hello', '998.jpg\ta TV of 42"'
    path = write(tmp_path, "a.tsv", "\n".join(["path\tcaption", *lines, ""]))
    told = refusal(path)
    assert told.startswith("a.tsv: a quote opens in line 111 over lines that look like rows, as line 112, expected ")
    assert 'pass columns.quoting="none" if' in told
    found = listed(path, quoting="none", keep=("caption",))
    assert (len(found), found[109]) == (1000, Item("109.jpg", "109.jpg", 0, values=('"Hello',)))
    lines[998] = '998.jpg\t"a TV'
    path = write(tmp_path, "a.tsv", "\n".join(["path\tcaption", *lines, ""]))
    assert "a quote opens in line 111 and is followed by other characters where it closes, line 1000" in refusal(path)
    path = write(tmp_path, "a.tsv", "\n".join(["path\tcaption", *lines[:998], ""]))
    assert "a quote opens in line 111 and does not close before the end" in refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "path,t\na.jpg,one\nb.jpg,a square, left of a star\nc.jpg,two",
            [("a.jpg", "one"), "a.csv:3", ("c.jpg", "two")],
        ),
        ("path,t\na.jpg\nb.jpg,two", ["a.csv:2", ("b.jpg", "two")]),
        ("path,t\n,one\nb.jpg,two", ["a.csv:2", ("b.jpg", "two")]),
        ('path,t\na.jpg,"one" and more\nb.jpg,two', ["a.csv:2", ("b.jpg", "two")]),
        ('path,t\na.jpg,5" by 6"\n', [("a.jpg", '5" by 6"')]),
        ("path,t\na.jpg,o\0ne\nb.jpg,two", ["a.csv:2", ("b.jpg", "two")]),
        ('path,t\na.jpg,"one\n\ntwo, three"\n\n\nb.jpg,""\n', [("a.jpg", "one\n\ntwo, three"), ("b.jpg", "")]),
        ("path,t\r\na.jpg,one\rb.jpg,two\nc.jpg,three\r\r\n", [("a.jpg", "one"), ("b.jpg", "two"), ("c.jpg", "three")]),
        ("path,t\na.jpg,one\npath,t\nb.jpg,two", [("a.jpg", "one"), "a.csv:3", ("b.jpg", "two")]),
        ("path;t\na.jpg;one, two\n", [("a.jpg", "one, two")]),
        ("path\tt\na.jpg\tone; two, three\n", [("a.jpg", "one; two, three")]),
        ('"path";"t"\n"a.jpg";"1;2"\n', [("a.jpg", "1;2")]),
        ('path,t\n1.jpg,"first\n2, second"\n', [("1.jpg", "first\n2, second")]),
        ('path,t\n1.jpg,"first\nas in b.jpg, now"\n', [("1.jpg", "first\nas in b.jpg, now")]),
    ],
)
def test_each_row_is_an_entry_or_a_failure_that_names_its_line(
    tmp_path: Path, content: str, expected: list[Any]
) -> None:
    path = write(tmp_path, "a.csv", content)
    found = listed(path, keep=("t",))
    assert tell(found) == expected
    for entry in found:
        if isinstance(entry, Failure):
            assert (entry.path, entry.stage, entry.error) == (str(path), "read", "InputError")
            assert entry.message.startswith(f"line {entry.id.removeprefix('a.csv:')} ")


def test_other_delimiters_are_taken_where_the_user_names_them_and_asked_for_where_two_are_possible(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "a.csv", "path|t\na.jpg|one\n")
    assert "has no column 't' among path|t" in refusal(path, keep=("t",))
    assert tell(listed(path, keep=("t",), delimiter="|")) == [("a.jpg", "one")]
    path = write(tmp_path, "a.csv", "path\tt;url\na.jpg\tone\n")
    assert "line 1 may be split at a tab or at ';'" in refusal(path)
    assert [entry.id for entry in listed(path, delimiter="tab")] == ["a.jpg"]
    with pytest.raises(InputError, match="delimiter: found 'ab', expected a character"):
        Columns(delimiter="ab")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('path,"t\na.jpg,one\n', "line 1, which names the columns, has a quote that does not close"),
        ("", "holds nothing"),
        ('path,t\na.jpg,"one\nb.jpg,two\n', "a quote opens in line 2 and does not close before the end"),
        ('path,t\na.jpg,"one\nb.jpg,two"\n', "a quote opens in line 2 over lines that look like rows, as line 3"),
        ('path,t\na.jpg,"one\nb.jpg,"two"\n', "a quote opens in line 2 and is followed by other characters"),
        ('path,t\na.jpg,"one\nb.jpg,tw\0o"\n', "a quote opens in line 2 and line 3 holds a NUL"),
        ('path,t,n\na.jpg,"one,1\nb.jpg,two "\n', "a quote opens in line 2 and goes on to line 3, no row of the list"),
        ('path\n"a.jpg\nb.jpg"\n', "a quote opens in line 2 in column 'path' over several lines"),
        (
            'path,t\na.jpg,"one\nb.jpg,two, three"\n',
            "a quote opens in line 2 over lines that look like rows, as line 3",
        ),
    ],
)
def test_a_list_whose_form_is_in_doubt_is_refused(tmp_path: Path, content: str, told: str) -> None:
    assert told in refusal(write(tmp_path, "a.csv", content))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.ndjson"])
def test_encodings_are_known_by_their_marks(tmp_path: Path, encoding: str, name: str) -> None:
    content = {"a.csv": "path,t\né.jpg,one\n", "a.txt": "é.jpg\n", "a.ndjson": '{"path": "é.jpg"}\n'}[name]
    path = write(tmp_path, name, content.encode(encoding))
    if encoding in ("utf-16-le", "utf-16-be"):
        assert "looks like UTF-16 without a byte order mark" in refusal(path)
        return
    assert [entry.id for entry in listed(path)] == ["é.jpg"]
    if encoding == "utf-16":
        path.write_bytes(path.read_bytes()[:-1])
        assert "says that it is UTF-16 and is not" in refusal(path)


def test_bytes_that_are_not_utf_8_stay_in_paths(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"caf\xe9.jpg\n"), ("a.csv", b"path,t\ncaf\xe9.jpg,\xe9\n")):
        (entry,) = listed(write(tmp_path, name, content))
        assert (entry.id, os.fsencode(entry.path)) == ("caf\\xe9.jpg", b"caf\xe9.jpg")


def test_lines_of_plain_lists_end_in_any_way_and_a_nul_in_one_is_a_failure(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "a.jpg\r\nb.jpg\rc.jpg\n\nd.jpg\r\r\ne\0.jpg\nf.jpg")
    assert [entry.id for entry in listed(path)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "a.txt:7", "f.jpg"]
    texts = listed(write(tmp_path, "b.txt", "one\r\n\r\ntwo\r\r\nthree"), texts=True)
    assert [entry.values[0] for entry in texts if isinstance(entry, Item)] == ["one", "", "two", "three"]
    names = ["a.jpg", "b\n.jpg", "c\r.jpg", "x" * 100_000]
    path = write(tmp_path, "a.txt", "\0".join([*names, ""]))
    assert [entry.id for entry in listed(path)] == names


def test_a_line_that_no_list_has_is_a_failure_and_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_LINE", 100)
    monkeypatch.setattr(delimited, "MAX_LINE", 100)
    long = "x" * 1000
    for name, head, good in (("a.txt", "", "{}"), ("a.csv", "path\n", "{}"), ("a.ndjson", "", '{{"path": "{}"}}')):
        path = write(tmp_path, name, head + "\n".join([good.format("a"), long, good.format("b")]))
        line = 3 if head else 2
        found = listed(path)
        assert [entry.id for entry in found] == ["a", f"{name}:{line}", "b"]
        assert isinstance(found[1], Failure)
        assert found[1].message.startswith(f"line {line} is longer than 100 characters")
    path = write(tmp_path, "a.csv", 'path,t\na,"' + "y\n" * 80 + '"\n')
    assert "a quote opens in line 2 and does not close in 100 characters" in refusal(path)


objects = st.one_of(
    st.fixed_dictionaries(
        {"path": st.sampled_from(["a.png", "", None, 7, ["x"]])}, optional={"t": st.text(max_size=3)}
    ),
    st.sampled_from([{}, [], "x", 5, None]),
).map(json.dumps)
json_lines = st.one_of(objects, st.sampled_from(["", " ", "{", '{"path": "a"} {}', "nul\0", '{"path": "a.png"']))


@settings(deadline=None, max_examples=200)
@given(st.lists(json_lines, max_size=12))
def test_each_line_of_ndjson_that_is_not_blank_is_an_entry_or_a_failure(lines: list[str]) -> None:
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "a.ndjson", "\n".join(lines))
        try:
            found = listed(path, entry="path")
        except InputError as exc:
            told = str(exc)
            assert "names no image" in told or "expected an object" in told or "none of its rows has" in told
            assert not any('"path": "a.png"' in line and line.endswith("}") for line in lines)
            return
    assert len(found) == len(expected)
    for entry, (number, line) in zip(found, expected, strict=True):
        good = '"path": "a.png"' in line and line.endswith("}")
        assert entry.id == ("a.png" if good else f"a.ndjson:{number}")


def test_ndjson_takes_its_column_from_the_first_object_that_has_one_and_whole_numbers_as_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.jsonl", '{"t": 1}\n{"url": "http://h/a.png", "n": 7}\n{"url": "http://h/b.png", "n": true}\n'
    )
    assert [entry.id for entry in listed(path)] == ["a.jsonl:1", "http://h/a.png", "http://h/b.png"]
    assert [entry.id for entry in listed(path, id="n")] == ["a.jsonl:1", "7", "a.jsonl:3"]
    assert "line 1 is not JSON" in refusal(write(tmp_path, "a.jsonl", "[\n1\n]\n"))
    assert "line 1 is list, expected an object in each line" in refusal(write(tmp_path, "a.jsonl", '[{"path": "a"}]'))


def test_uris_of_this_machine_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/é 100%.png").write_bytes(b"x")
    folder = str(tmp_path)
    uris = [f"file://{folder}/a%20b/%C3%A9%20100%25.png", f"file://localhost{folder}/a b/é 100%.png"]
    uris += [f"FILE:{folder}/a%20b/é 100%25.png", f"file://other{folder}/a%20b/x.png"]
    found = listed(write(tmp_path, "a.txt", "\n".join(uris)))
    assert [entry.id for entry in found] == uris, "as the list writes them"
    assert [entry.path for entry in found] == [f"{folder}/a b/é 100%.png"] * 3 + uris[3:]
    assert [entry.size_bytes for entry in found if isinstance(entry, Item)] == [1, 1, 1, 0]
    (entry,) = [one for one in Source((f"file://{folder}/a%20b",)).entries(9, Counter()) if isinstance(one, Item)]
    assert entry.path == f"{folder}/a b/é 100%.png"
    source = Source((str(write(tmp_path, "b.txt", "é 100%.png")),), root=f"file://{folder}/a%20b")
    assert [one.size_bytes for one in source.entries(9, Counter()) if isinstance(one, Item)] == [1]
