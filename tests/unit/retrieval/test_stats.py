"""clip.stats and `clip stats`: the percentiles are those of the cosines in the output."""

import json
from pathlib import Path

import numpy as np
import pytest
from kit import formula
from kit.in_process import Run
from kit.jobs import embed_job

import clip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, text_weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    (folder / "photos").mkdir()
    for number in range(7):
        formula.picture(number, 40 + 8 * number, 40).save(folder / "photos" / f"{number}.png")
    clip.embed(embed_job(source=folder / "photos", output=folder / "out", model=str(text_weights), threads=1))
    return folder / "out"


def test_percentiles_are_of_all_pairs_and_of_each_text(out: Path, text_weights: Path) -> None:
    report = clip.stats(clip.StatsJob(output=out, texts=("a cat", "a dog"), device="cpu"))
    vectors = clip.Store(out).vectors().astype(np.float64)
    pairs = (vectors @ vectors.T)[np.triu_indices(7, 1)]
    text = clip.Encoder(text_weights, device="cpu", threads=1).encode_text(["a cat"]).numpy()[0]
    percents = [1, 5, 25, 50, 75, 95, 99, 99.9]
    images, cat, dog = report.cosines
    assert (report.rows, images.of, images.pairs, cat.of, cat.pairs) == (7, "image to image", 21, "a cat", 7)
    assert images.percentiles == pytest.approx(np.percentile(pairs, percents), abs=1e-3)
    assert cat.percentiles == pytest.approx(np.percentile(vectors @ text / np.linalg.norm(text), percents), abs=1e-3)
    assert cat.percentiles != dog.percentiles


def test_the_command_prints_a_table_or_json(out: Path, run: Run) -> None:
    code, text, _ = run("stats", str(out), "-t", "a text that is longer than its column")
    assert code == 0
    head, images, words = text.splitlines()
    assert head.split()[:5] == ["cosines", "of", "pairs", "1", "%"]
    assert images.startswith("image to image ")
    assert words.startswith("a text that is l... ")
    assert len(head) == len(images) == len(words)
    _, text, _ = run("stats", str(out), "--json")
    record = json.loads(text)
    assert len(record["percents"]) == len(record["cosines"][0]["percentiles"]) == 8
