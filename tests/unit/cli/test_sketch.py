"""The sketch model says what it does not know: photographs, and words that its captions never had."""

from pathlib import Path
from random import Random

import pytest
from kit.in_process import Run
from kit.inputs import draw_photos
from PIL import Image

from clip.cli.sketch import warn_of_words
from clip.demo.scenes import caption, compose, list_words


def test_all_words_of_captions_are_known() -> None:
    rng, known = Random(5), list_words()
    for _ in range(500):
        text = caption(rng, compose(rng))
        assert [word for word in text.lower().replace(".", "").replace(",", "").split() if word not in known] == [], (
            text
        )


def test_unknown_words_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_words("sketch", ["a red boat", "the boat on a blue Square."])
    assert capsys.readouterr().err.startswith("sketch has never seen 'boat': it knows circle, square,")
    warn_of_words("ViT-B/32", ["a red boat"])
    warn_of_words("sketch", ["two red circles left of a star"])
    assert capsys.readouterr().err == ""


def test_photographs_are_warned_of_once_a_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    photos = draw_photos(tmp_path / "photos", ["a.png"])
    arguments = ("embed", photos, "-o", tmp_path / "out", "-m", "sketch", "--update")
    assert "knows drawn shapes" not in run(*arguments)[2]
    for name in ("b.jpg", "c.jpg"):
        Image.open(photos / "a.png").convert("RGB").save(photos / name)
    assert run(*arguments)[2].count("knows drawn shapes") == 1
    said = run("find", "a boat", photos, "-m", "sketch")[2]
    assert (said.count("knows drawn shapes"), said.count("never seen 'boat'")) == (1, 1)
