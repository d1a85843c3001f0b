"""What can be refused without torch is refused without it: a typo is answered at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from kit.inputs import draw_photos

LIMIT_S = 600.0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", ["a.png"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{photos}/none", "-o", "{out}"], "no such file, expected a folder, an image, a list"),
        (["{photos}", "-o", "{out}", "-m", "ViT-B/33"], "Did you mean 'ViT-B/32'?"),
        (["{photos}", "-o", "{photos}/a.png"], "expected"),
        (["{photos}", "-o", "{out}", "--workers", "0"], "expected"),
    ],
    ids=["input", "model", "output", "option"],
)
def test_a_refusal_loads_no_torch(photos: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    filled = [one.format(photos=photos, out=tmp_path / "out") for one in arguments]
    command = [sys.executable, "-X", "importtime", "-m", "clip", "embed", *filled]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    lines = ran.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert said in "".join(line for line in lines if not line.startswith("import time:"))
    assert "click" in loaded
    assert not loaded & {"torch", "openvino"}
    assert not (tmp_path / "out").exists()
