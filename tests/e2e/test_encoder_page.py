"""The code of docs/encoder.md, run as it stands: each block prints what its comments say."""

import re
from pathlib import Path

import pytest
from kit import ROOT, formula

PAGE = (ROOT / "docs" / "encoder.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MAX_NOT_RUN = 2  # blocks that need a GPU, or minutes


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_prints_what_it_says(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    formula.picture(0, 64, 48).save("photos/one.jpg")
    formula.picture(1, 32, 40).save("photos/two.png")
    printed = re.findall(r"print\(.*\)\s+# (.*)$", block, re.MULTILINE)
    assert printed, "a block that prints nothing shows nothing"
    exec(compile(block, "docs/encoder.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.splitlines() == printed


def test_every_other_block_is_marked_and_they_are_few() -> None:
    fences = re.findall(r"^```python(.*)$", PAGE, re.MULTILINE)
    assert set(fences) == {"", " no-run"}
    assert fences.count(" no-run") <= MAX_NOT_RUN
    for block in re.findall(r"^```python no-run\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        compile(block, "docs/encoder.md", "exec")
