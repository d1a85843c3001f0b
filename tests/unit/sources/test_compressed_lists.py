"""Lists that are compressed, by their last ending; one that is damaged is refused in words."""

from pathlib import Path

import pyarrow as pa
import pytest
from kit.inputs import draw_photos

import clip
from clip.errors import InputError
from clip.sources.lists import is_list, read_lines
from clip.sources.text_file import split_ending

LISTS = {
    "a.csv": "path,note\na.png,ä\nb.png,日\n",
    "a.tsv": "path\tnote\na.png\tä\nb.png\t日\n",
    "a.jsonl": '{"path": "a.png", "note": "ä"}\n{"path": "b.png", "note": "日"}\n',
    "a.ndjson": '{"path": "a.png", "note": "ä"}\n{"path": "b.png", "note": "日"}\n',
    "a.txt": "a.png\nb.png\n",
}


def compress(text: str, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(text.encode())
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("ending", "codec"), [(".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("name", list(LISTS))
def test_a_compressed_list_has_the_lines_of_the_plain_one(tmp_path: Path, name: str, ending: str, codec: str) -> None:
    columns = clip.jobs.Columns(keep=() if name.endswith(".txt") else ("note",))
    plain, packed = tmp_path / name, tmp_path / f"{name}{ending}"
    plain.write_text(LISTS[name], encoding="utf-8")
    packed.write_bytes(compress(LISTS[name], codec))
    assert is_list(str(packed))
    lines = list(read_lines(str(packed), columns))
    assert lines == list(read_lines(str(plain), columns))
    assert [line.entry for line in lines] == ["a.png", "b.png"]
    packed.write_bytes(compress(LISTS[name], codec)[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        list(read_lines(str(packed), columns))


def test_a_run_of_a_compressed_list_is_that_of_the_plain_one(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", ["a.png", "b.png"])
    (photos / "all.csv.gz").write_bytes(compress(LISTS["a.csv"], "gzip"))
    job = clip.EmbedJob(source=photos / "all.csv.gz", output=tmp_path / "out", model="sketch", root=str(photos))
    report = clip.embed(job)
    assert (report.read, report.written) == (2, 2)
    assert clip.Store(tmp_path / "out").table(["id"])["id"].to_pylist() == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.csv.gz", (".csv", ".gz")),
        ("https://host/A.JSONL.ZST", (".jsonl", ".zst")),
        ("a.csv", (".csv", "")),
        ("-", ("", "")),
        ("a.gz", ("", ".gz")),
    ],
)
def test_the_last_ending_says_how_a_list_is_compressed(name: str, parts: tuple[str, str]) -> None:
    assert split_ending(name) == parts
