"""`clip failures`, and the failures that a run ends with: every name in its own script, one line each."""

import csv
import io
import json
from pathlib import Path

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos

BROKEN = ["b\u00e4um.png", "line\nbreak.png", "\u732b.jpg", "x1.png", "x2.png", "x3.png", "x4.png"]


@pytest.fixture
def out(run: Run, weights: Path, tmp_path: Path) -> Path:
    """An output of a good image and seven broken ones."""
    draw_photos(tmp_path / "photos", ["a.png"], broken=BROKEN)
    assert run("embed", tmp_path / "photos", "-o", tmp_path / "out", "-m", weights, "--shard-size", "3")[0] == 3
    return tmp_path / "out"


def test_each_failure_is_a_line_with_its_reason(run: Run, out: Path) -> None:
    code, said, summary = run("failures", out)
    lines = said.splitlines()
    assert code == 0
    assert [line.rpartition("/")[2].partition(": ")[0] for line in lines] == [
        name.replace("\n", "\\n") for name in sorted(BROKEN)
    ]
    assert all(line.endswith("(open: ImageError)") for line in lines), lines
    assert summary == f"7 failed: 7 open; {out}\n"


def test_programs_read_them_as_json_csv_or_paths(run: Run, out: Path) -> None:
    _, said, _ = run("failures", out, "--json")
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["id"] for row in rows] == sorted(BROKEN)
    assert "\u732b" in said, "it is not escaped"
    _, as_csv, _ = run("failures", out, "--csv")
    assert list(csv.DictReader(io.StringIO(as_csv))) == rows
    _, paths, _ = run("failures", out, "--paths")
    assert paths == "".join(f"{row['path']}\n" for row in rows)
    assert all(Path(row["path"]).is_file() for row in rows)
    assert run("failures", out, "--paths", "--json")[0] == 2


def test_an_output_without_failures_has_none_to_list(run: Run, weights: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos", ["a.png"])
    assert run("embed", tmp_path / "photos", "-o", tmp_path / "out", "-m", weights)[0] == 0
    assert run("failures", tmp_path / "out") == (0, "", f"0 failed; {tmp_path / 'out'}\n")


def test_a_run_ends_with_its_first_failures_and_where_the_others_are(run: Run, weights: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos", ["a.png"], broken=BROKEN)
    command = ("embed", tmp_path / "photos", "-m", weights, "-o")
    _, _, said = run(*command, tmp_path / "out")
    *_, first, second, third, fourth, fifth, more, _ = said.splitlines()
    assert [line.split(": ")[0] for line in (first, second, third, fourth, fifth)] == ["failed"] * 5
    assert first.partition("photos/")[2].startswith("b\u00e4um.png: ")
    assert more == f"and 2 more: clip failures {tmp_path / 'out'}"
    for quiet in (["--json"], ["--progress", "none"], ["--progress", "json"]):
        assert "failed: " not in run(*command, tmp_path / "out", "--overwrite", *quiet)[2]
