"""`clip demo`, as a newcomer runs it, on a machine without a network."""

import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kit.in_process import Run
from kit.programs import FOLDER
from PIL import Image

import clip
from clip.batch import embed as embed_module

SCENES = 60


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """What a demo says on stdout and stderr, and where it was run."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "offline").mkdir()
    shutil.copy(FOLDER / "no_network.py", folder / "offline" / "sitecustomize.py")
    environment = {name: value for name, value in os.environ.items() if name != "CLIP_OFFLINE"}
    environment |= {"HOME": str(folder)}
    paths = [str(folder / "offline"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "clip", "demo", "--seed", "4", "--scenes", str(SCENES)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "offline" / "sitecustomize.py.ran").exists()
    return ran.stdout, ran.stderr, folder / "demo-out"


def test_the_demo_finds_what_it_asks_for(shown: tuple[str, str, Path]) -> None:
    out, err, folder = shown
    with (folder / "scenes.csv").open(newline="") as file:
        paths = {row["caption"]: Path(row["path"]).name for row in csv.DictReader(file)}
    asked = re.findall(r"^\$ clip search demo-out/vectors -t '(.*)' -n 5", out, re.MULTILINE)
    best = [re.match(r"0\.\d+ +(\S+)", block.split("\n", 2)[2]) for block in out.split("$ clip search demo-out")[1:]]
    assert len(asked) == len(best) == 3
    assert [match and Path(match[1]).name for match in best] == [paths[caption] for caption in asked]
    assert f"read {SCENES} = written {SCENES}, failed 0" in err
    parts = [float(part) for part in re.findall(r"correct \d+ of \d+: ([\d.]+)%", err)]
    assert len(parts) == 2
    assert min(parts) >= 90


def test_the_demo_leaves_pictures_vectors_and_a_sheet(shown: tuple[str, str, Path]) -> None:
    out, err, folder = shown
    assert len(list((folder / "scenes").glob("*.jpg"))) == SCENES
    assert clip.Store(folder / "vectors").vectors().shape == (SCENES, 256)
    with Image.open(folder / "hits.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 5 * 224
    assert "demo-out/hits.png: 5 hits" in err
    assert "clip embed photos/ -o vectors/ -m ViT-B/32" in out
    assert "cannot do: photographs" in out


def test_another_demo_takes_the_place_of_the_first_and_of_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "scenes").mkdir(parents=True)
    (out / "scenes" / "mine.jpg").write_bytes(b"mine")
    code, _, err = run("demo", "-o", out, "--scenes", 50)
    assert code == 2
    assert f"{out / 'scenes'}: holds other files, expected none" in err
    (out / "scenes" / "mine.jpg").rename(out / "mine.jpg")
    assert run("demo", "-o", out, "--scenes", 50, "--seed", 1)[0] == 0
    first = {path.name for path in (out / "scenes").iterdir()}
    assert run("demo", "-o", out, "--scenes", 55, "--seed", 2)[0] == 0
    second = {path.name for path in (out / "scenes").iterdir()}
    assert (len(first), len(second)) == (50, 55)
    assert first != second
    assert (out / "mine.jpg").read_bytes() == b"mine"


def test_a_demo_ends_as_its_commands_do(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = embed_module.embed
    monkeypatch.setattr(embed_module, "embed", lambda *asked: replace(embed(*asked), failed=1))
    code, out, _ = run("demo", "-o", tmp_path / "out", "--scenes", 50)
    assert code == 3
    assert "clip search" not in out


@pytest.mark.parametrize("name", ["vectors", "hits.png"])
def test_vectors_and_pictures_of_a_users_own_are_left_alone(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    code, _, err = run("demo", "-o", tmp_path)
    assert code == 2
    assert f"{tmp_path / name}: exists without a scenes.csv of an earlier demo" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("found", [b"path,name\na.jpg,mine\n", b"\xff\xfe", b"", b'path,caption,shape,colour\n"a\n'])
def test_a_list_that_is_not_ours_is_left_alone(found: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "scenes.csv").write_bytes(found)
    code, _, err = run("demo", "-o", tmp_path)
    assert code == 2
    assert "is not the list of an earlier demo" in err
    assert (tmp_path / "scenes.csv").read_bytes() == found
    assert not (tmp_path / "scenes").exists()


@pytest.mark.parametrize("scenes", [0, 49, 100_001])
def test_too_few_or_too_many_scenes_are_refused(scenes: int, run: Run, tmp_path: Path) -> None:
    code, _, err = run("demo", "-o", tmp_path / "out", "--scenes", scenes)
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert f"--scenes: found {scenes:,}, expected 50 to 100,000" in err
