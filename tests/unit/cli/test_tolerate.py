"""`--tolerate`: failures that the user allowed are no failure of the command."""

from pathlib import Path

from kit.in_process import Run
from kit.inputs import draw_photos


def test_as_many_failures_as_allowed_exit_with_0(run: Run, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    (photos / "bad.png").touch()
    embed = ("embed", photos, "-o", tmp_path / "out", "-m", "sketch")
    code, _, said = run(*embed, "--tolerate", "--max-failures", "1")
    assert (code, "failed 1" in said) == (0, True)
    assert run(*embed)[0] == 3, "without it the same run has its own code"
    assert run(*embed, "--tolerate", "--max-failures", "25%")[0] == 0, "also where there is nothing to do"
    assert run(*embed, "--tolerate", "--max-failures", "0")[0] == 3
    (photos / "clip.mp4").touch()
    assert run(*embed, "--update", "--tolerate", "--max-failures", "1")[0] == 3, "a kind that is not read"
    code, _, said = run(*embed, "--tolerate")
    assert (code, "without --max-failures" in said) == (2, True)
    assert run(*embed[:3], tmp_path / "new", *embed[4:], "--tolerate", "--max-failures", "0")[0] == 1
