"""Letters are drawn in a font that has them; one that no font has is named."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from clip.retrieval import fonts
from clip.retrieval.fonts import Fonts, find_fonts


def test_a_letter_that_no_font_has_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/DejaVuSans.ttf").write_bytes(b"no font either")
    assert [path.name for path in find_fonts((str(tmp_path),))] == ["DejaVuSans.ttf", "damaged.ttf"]
    monkeypatch.setattr(fonts, "find_fonts", lambda: find_fonts((str(tmp_path),)))
    one = Fonts(15)
    assert one.measure("a日") > one.measure("a")
    assert one.missing == {"日"}


def test_a_text_of_several_scripts_is_as_wide_as_its_parts() -> None:
    one = Fonts(15)
    image = Image.new("RGB", (300, 40), "white")
    one.draw(ImageDraw.Draw(image), (10, 20), "aж", (0, 0, 0))
    drawn = image.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    assert drawn is not None
    assert drawn[0] >= 10
    assert drawn[2] <= 10 + one.measure("aж") + 2


def test_a_text_that_one_font_has_is_drawn_in_it_alone() -> None:
    paths = find_fonts()
    one = Fonts(15)
    runs = one._split("Frühling größer")
    if paths and not one.missing:
        assert [run for _, run in runs] == ["Frühling größer"]
    assert one.measure("Frühling größer") == sum(round(font.getlength(run)) for font, run in runs)
    assert [run for _, run in one._split("plain")] == ["plain"]
