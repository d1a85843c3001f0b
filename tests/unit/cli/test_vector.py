"""`clip vector`: a few images and texts on stdout, in each format, and how similar they are."""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from kit.in_process import Run
from PIL import Image, ImageDraw

import clip

SKETCH = ("-m", "sketch")
TEXTS = ("-t", "a photo of a red circle.", "-t", "a photo of a blue square.")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 75, 75), fill="red")
    picture.save("円.png")
    return "円.png"


def read_lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_each_input_is_a_line_with_the_vector_that_the_encoder_gives(run: Run, image: str) -> None:
    code, out, said = run("vector", image, *TEXTS, *SKETCH)
    rows = read_lines(out)
    encoder = clip.Encoder("sketch")
    wanted = [*encoder.embed_images([image]), *encoder.embed_texts([TEXTS[1], TEXTS[3]])]
    assert (code, said) == (0, "")
    assert [(row["kind"], row["input"]) for row in rows] == [("image", image), ("text", TEXTS[1]), ("text", TEXTS[3])]
    for row, vector in zip(rows, wanted, strict=True):
        assert np.array_equal(np.array(row["vector"], np.float32), vector)
    raw = read_lines(run("vector", image, *SKETCH, "--raw")[1])[0]["vector"]
    assert np.allclose(np.array(raw), encoder.embed_images([image], normalize=False)[0])


def test_base64_and_npy_hold_the_same_numbers(run: Run, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = np.array([row["vector"] for row in read_lines(run("vector", image, *TEXTS, *SKETCH)[1])], np.float32)
    coded = [
        np.frombuffer(base64.b64decode(str(row["vector"])), "<f4")
        for row in read_lines(run("vector", image, *TEXTS, *SKETCH, "--format", "base64")[1])
    ]
    assert np.array_equal(np.stack(coded), plain)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, write_through=True))
    run("vector", image, *TEXTS, *SKETCH, "--format", "npy")
    assert np.array_equal(np.load(io.BytesIO(written.getvalue())), plain)


def test_an_image_comes_from_stdin(run: Run, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(Path(image).read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    (given,) = read_lines(run("vector", "-i", "-", *SKETCH)[1])
    (named,) = read_lines(run("vector", image, *SKETCH)[1])
    assert (given["input"], given["vector"]) == ("-", named["vector"])


def test_similar_prints_cosines_and_probabilities(run: Run, image: str) -> None:
    code, out, _ = run("vector", image, *TEXTS, *SKETCH, "--similar")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[0] == "cosine"
    assert lines[1].split()[:2] == [image, "1.0000"]
    assert lines[5].split()[0] == "probability"
    assert lines[6].split() == [image, "100.00%", "0.00%"]
    assert "probability" not in run("vector", image, *TEXTS[:2], *SKETCH, "--similar")[1]


def test_an_image_that_cannot_be_read_has_an_error_and_the_code_says_so(run: Run, image: str) -> None:
    Path("empty.png").touch()
    code, out, _ = run("vector", "empty.png", image, *SKETCH)
    first, second = read_lines(out)
    assert (code, first["input"], "vector" in first, "vector" in second) == (3, "empty.png", False, True)
    assert "empty" in str(first["error"])
    code, out, said = run("vector", "empty.png", image, *SKETCH, "--similar")
    assert (code, "failed: empty.png: " in said, out.splitlines()[1].split()[0]) == (3, True, image)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "found nothing to encode"),
        (("none.png",), "no such file, expected an image. Check the path; as a text it is -t 'none.png'."),
        ((".",), "is a folder, expected an image. Run: clip embed . -o OUT"),
        (("-i", "-", "-i", "-"), "found '-' twice"),
        (("-t", "a", "-m", "ViT-B/33"), "Did you mean 'ViT-B/32'?"),
        (("-t", "a", "--raw", "--similar"), "expected one of them"),
    ],
)
@pytest.mark.usefixtures("image")
def test_what_cannot_be_encoded_is_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, told = run("vector", *arguments)
    assert (code, out) == (2, "")
    assert said in told
