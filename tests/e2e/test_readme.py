"""The README's code, run as it stands: what it prints is what its comments say."""

import re
from pathlib import Path

import pytest
import torch
from kit import ROOT, formula

from clip.weights import locate
from clip.weights.checkpoints import draw_checkpoint

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cache holds a file for ViT-B/32."""
    home = tmp_path_factory.mktemp("home")
    cached = home / ".cache" / "clip" / "ViT-B-32.pt"
    cached.parent.mkdir(parents=True)
    torch.save(draw_checkpoint("ViT-B/32", 0).state_dict, cached)
    return home


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_the_readmes_code_prints_what_it_says(
    block: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "is_verified", lambda *_: True)  # our file stands for OpenAI's
    formula.picture(0, 640, 427).save("photo.jpg")
    Path("photos").mkdir()
    formula.picture(1, 320, 240).save("photos/one.jpg")
    said = re.findall(r"print\(.*\)\s+# (.*)$", block, re.MULTILINE)
    assert said, "a block that prints nothing shows nothing"
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == said
