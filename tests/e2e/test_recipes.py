"""Each Python block of docs/recipes.md runs, on an output of three drawn images."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit import ROOT
from kit.inputs import draw_photos

import clip

LIMIT_S = 600.0
BLOCKS = re.findall(r"```python\n# (.*?)\n(.*?)```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    draw_photos(folder / "photos", ["a.png", "b.png", "c.png"])
    clip.embed(clip.EmbedJob(source=folder / "photos", output=folder / "out", model="sketch"))
    return folder


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title.partition(":")[0] for title, _ in BLOCKS])
def test_a_recipe_runs(out: Path, title: str, code: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=out, env=environment
    )
    assert ran.returncode == 0, (title, ran.stderr)
    assert ran.stdout


def test_there_are_recipes() -> None:
    assert len(BLOCKS) >= 6
