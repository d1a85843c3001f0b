"""clip tune, --min-cosine, --fast: what was measured is what is told, and nothing below the bound is chosen."""

import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import checkpoints, formula
from kit.inputs import draw_photos, number_names
from kit.jobs import change_job, embed_job, tune_job

import clip
from clip.batch import embed as embed_module
from clip.batch import tune as tune_module
from clip.batch.tune import summarise, tune
from clip.cli.main import cli
from clip.encoder import Encoder
from clip.engine.backend_openvino import usable_precisions
from clip.errors import InputError
from clip.jobs.embed import Progress
from clip.jobs.options import FAST_COSINE
from clip.jobs.tune import TuneReport

IMAGES = 40
Choice = tuple[str, str]  # precision and pixels
CHOICES: list[Choice] = [(word, mode) for word in ("reference", *usable_precisions()[1:]) for mode in ("exact", "fast")]


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with channels that are thousands of times as large as the others, as CLIP's own have some.

    Two neurons of each block that are always at 4,000 and cancel out. Eight bits for all neurons together leave nothing
    of the small ones; bf16 has an exponent for each.
    """
    path = checkpoints.write(tmp_path_factory.mktemp("outliers"))
    entries = torch.load(path, weights_only=True)
    for name in [name for name in entries if name.startswith("visual.") and name.endswith("mlp.c_fc.weight")]:
        block = name.removesuffix("c_fc.weight")
        entries[name][:2] = 0
        entries[f"{block}c_fc.bias"][:2] = 4000
        entries[f"{block}c_proj.weight"][:, 1] = -entries[f"{block}c_proj.weight"][:, 0]
    torch.save(entries, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "photos"
    return draw_photos(folder, number_names(IMAGES), width=50, height=40, wider=1, broken=["00.broken.png"])


@pytest.fixture(scope="module")
def report(text_weights: Path, photos: Path) -> TuneReport:
    return tune(tune_job(source=photos, model=str(text_weights), threads=1, workers=1, images=32))


def test_each_setting_of_the_machine_is_measured_once(report: TuneReport) -> None:
    words = ["reference", *usable_precisions()[1:]]
    assert [(row.precision, row.decode) for row in report.rows] == [(w, d) for w in words for d in ("exact", "fast")]
    assert report.images == 32
    assert report.rows[0].min_cosine == report.rows[0].neighbours == 1
    for row in report.rows:
        assert row.images_per_s > 0
        assert row.min_cosine <= row.p1_cosine <= row.mean_cosine <= 1
        assert math.isclose(math.cos(math.radians(row.max_angle_degrees)), row.min_cosine, abs_tol=1e-9)
        assert row.within == (row.min_cosine >= FAST_COSINE)
    assert report.best.within
    assert report.best.images_per_s == max(row.images_per_s for row in report.rows if row.within)


@pytest.mark.skipif("bf16" not in usable_precisions(), reason="this processor has no bf16")
def test_cosines_are_those_of_the_encoders_vectors(report: TuneReport, text_weights: Path, photos: Path) -> None:
    row = next(row for row in report.rows if (row.precision, row.decode) == ("bf16", "exact"))
    every = sorted(path for path in photos.iterdir() if "broken" not in path.name)
    exact, near = (
        Encoder(str(text_weights), device="cpu", threads=1, precision=word).embed(every) for word in ("fp32", "bf16")
    )
    cosines = (exact.astype(np.float64) * near).sum(axis=1)
    assert cosines.min() - 1e-6 <= row.min_cosine <= cosines.max()
    assert row.min_cosine < 1


def test_neighbours_are_counted() -> None:
    generator = np.random.default_rng(5)
    exact = generator.normal(size=(50, 8)).astype(np.float32)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert tune_module._agreement(exact, exact) == 1
    other = exact[::-1].copy()
    expected = []
    for place in range(50):
        near = [
            set(sorted((n for n in range(50) if n != place), key=lambda n: (-float(of[place] @ of[n]), n))[:10])
            for of in (exact, other)
        ]
        expected.append(len(near[0] & near[1]) / 10)
    assert math.isclose(tune_module._agreement(other, exact), float(np.mean(expected)))


@pytest.mark.skipif("int8" not in usable_precisions(), reason="this processor has no products of 8-bit integers")
def test_outliers_make_int8_fail_and_it_is_not_chosen(outliers: Path, photos: Path, tmp_path: Path) -> None:
    found = tune(tune_job(source=photos, model=str(outliers), threads=1, workers=1, images=32))
    int8 = [row for row in found.rows if row.precision == "int8"]
    assert int8
    assert not any(row.within for row in int8), int8
    assert found.best.precision != "int8"
    clip.embed(
        embed_job(source=photos, output=tmp_path / "out", model=str(outliers), threads=1, min_cosine=FAST_COSINE)
    )
    manifest = clip.Store(tmp_path / "out").manifest
    assert manifest.precision != "int8"
    assert {
        row["precision"] for row in (manifest.tuned or {})["rows"] if row["precision"] == "int8" and row["within"]
    } == set()


def inject_seconds(patch: pytest.MonkeyPatch, fastest: Choice | None, slowest: Choice | None = None) -> None:
    """Let each timed run of a setting take 1 s, of the fastest 0.1 s and of the slowest 10 s, whatever it took."""

    def time(setting: Any, _: object) -> None:
        setting._seconds.append({fastest: 0.1, slowest: 10.0}.get((setting.encoder.precision, setting.decode), 1.0))

    patch.setattr(tune_module._Setting, "time", time)


def forbid_tuning(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(embed_module, "tune", lambda *_: pytest.fail("measured again"))


def test_where_nothing_fast_stays_within_the_bound_it_is_exact_and_says_so(
    report: TuneReport, text_weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = max(row.min_cosine for row in report.rows[1:])
    assert nearest < 1
    bound = (1 + nearest) / 2
    inject_seconds(monkeypatch, None, slowest=("reference", "exact"))
    lines: list[str] = []

    def note(progress: Progress) -> None:
        lines.extend([progress.message] if progress.message else [])

    clip.embed(
        embed_job(source=photos, output=tmp_path / "out", model=str(text_weights), threads=1, min_cosine=bound), note
    )
    assert lines[-1] == f"nothing faster stays within a cosine of {bound:g} on {IMAGES} images: exact"
    manifest = clip.Store(tmp_path / "out").manifest
    assert (manifest.precision, manifest.decode.pixels) == ("reference", "exact")
    first, *others = (manifest.tuned or {})["rows"]
    assert (first["within"], first["images_per_s"]) == (True, IMAGES / 10)
    assert len(others) == len(report.rows) - 1
    assert {(row["within"], row["images_per_s"]) for row in others} == {(False, IMAGES)}


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_a_run_takes_the_fastest_within_the_bound_and_keeps_it_when_it_is_resumed(
    choice: Choice,
    report: TuneReport,
    text_weights: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = min(row.min_cosine for row in report.rows) - 0.01  # all are within it: the time decides
    inject_seconds(monkeypatch, choice)
    job = embed_job(
        source=photos, output=tmp_path / "out", model=str(text_weights), threads=1, min_cosine=bound, shard_size=7
    )
    clip.embed(job)
    before = clip.Store(tmp_path / "out").manifest
    assert (before.precision, before.decode.pixels) == choice
    tuned = before.tuned or {}
    best = next(row for row in tuned["rows"] if (row["precision"], row["decode"]) == choice)
    assert tuned["best"] == best
    assert best["images_per_s"] == IMAGES / 0.1
    (tmp_path / "out/embeddings/part-00002.parquet").unlink()
    forbid_tuning(monkeypatch)
    clip.embed(job)
    assert clip.Store(tmp_path / "out").manifest == before


def test_a_choice_is_summed_up_in_a_line(report: TuneReport) -> None:
    fast = replace(report.rows[0], decode="fast", images_per_s=2.5 * report.rows[0].images_per_s, min_cosine=0.9999)
    line = "took reference, fast pixels: 2.5 times as fast as exact vectors, min cosine to them 0.999900 on 32 images"
    assert summarise(replace(report, rows=(report.rows[0], fast), best=fast)) == line


def test_pictures_of_lists_and_archives_are_measured_on_too(text_weights: Path, photos: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w") as file:
        print("one,two", *(f"x,{path.name}" for path in sorted(photos.iterdir())), sep="\n", file=file)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos, "photos")
    given: dict[str, Any] = {"model": str(text_weights), "threads": 1, "workers": 1, "images": 16}
    for source, more in ((tmp_path / "a.csv", {"column": "two", "root": str(photos)}), (tmp_path / "a.tar", {})):
        assert tune(tune_job(source=source, **given, **more)).images == 16
    job = embed_job(
        source=tmp_path / "a.csv",
        output=tmp_path / "out",
        model=str(text_weights),
        threads=1,
        min_cosine=0.9,
        column="two",
        root=str(photos),
        text_column="one",
    )
    assert clip.embed(job).written == IMAGES


def test_a_choice_outlives_updates(text_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_seconds(monkeypatch, ("reference", "fast"))
    photos = tmp_path / "photos"
    photos.mkdir()
    job = embed_job(source=photos, output=tmp_path / "out", model=str(text_weights), threads=1, min_cosine=0.5)
    formula.picture(0, 50, 40).save(photos / "0.png")
    for n in range(1, 4):
        formula.picture(n, 50, 40).save(photos / f"{n}.png")
        assert clip.embed(job if n == 1 else change_job(job, update=True)).read == n + 1
        manifest = clip.Store(tmp_path / "out").manifest
        assert (manifest.precision, manifest.decode.pixels) == ("reference", "fast")
        assert (manifest.tuned or {})["best"]["images_per_s"] == 2 / 0.1
        forbid_tuning(monkeypatch)


def test_what_cannot_be_measured_is_embedded_exactly(text_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    formula.picture(1, 50, 40).save(tmp_path / "photos/a.png")
    told: list[str] = []
    job = embed_job(
        source=tmp_path / "photos",
        output=tmp_path / "out",
        model=str(text_weights),
        threads=1,
        min_cosine=0.9,
        isolate=True,
    )
    assert clip.embed(job, lambda progress: told.append(progress.message)).written == 1
    assert any("exact, as nothing could be measured: " in line and "found 1 images" in line for line in told)
    assert clip.Store(tmp_path / "out").manifest.decode.pixels == "exact"


def test_a_precision_that_does_not_run_this_network_is_left_out(
    text_weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "usable_precisions", lambda _: ["fp32", "fp8"])
    told: list[str] = []
    found = tune(tune_job(source=photos, model=str(text_weights), threads=1, workers=1, images=16), told.append)
    assert [(row.precision, row.decode) for row in found.rows] == [("reference", "exact"), ("reference", "fast")]
    assert any(line.startswith("left out: precision 'fp8'") for line in told)


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (
            {"min_cosine": 0.9, "source": "-"},
            "min_cosine: found 0.9 with '-' as input, expected an input that can be read twice",
        ),
        ({"precision": "int8", "source": ("a", "-")}, "precision: found int8 with '-' as input"),
        ({"keep": ("a", "A")}, "keep: found 'A', which it has already"),
        ({"min_cosine": 0.0}, "min_cosine: found 0.0"),
        ({"min_cosine": 1.5}, "min_cosine: found 1.5"),
        ({"min_cosine": float("nan")}, "min_cosine: found nan"),
        ({"min_cosine": 0.9, "precision": "bf16"}, "min_cosine: found precision bf16"),
        ({"min_cosine": 0.9, "decode": "fast"}, "and fast pixels too"),
        ({"min_cosine": 0.9, "texts": True}, "texts: found options of images too. Leave out min_cosine"),
    ],
)
def test_bounds_that_make_no_sense(choices: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        embed_job(**{"source": "a", "output": "out"} | choices)


def test_too_few_pictures_are_told(text_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images: found 3, expected at least 16"):
        tune_job(source=tmp_path, images=3)
    with pytest.raises(InputError, match="workers: found -1, expected at least 1"):
        tune_job(source=tmp_path, workers=-1)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the first 1 entries can be decoded|found 0 images"):
        tune(tune_job(source=tmp_path, model=str(text_weights), threads=1))


def test_the_command_prints_a_table_or_json(text_weights: Path, photos: Path) -> None:
    from click.testing import CliRunner

    arguments = ["tune", str(photos), "-m", str(text_weights), "--pictures", "16", "--threads", "1", "--workers", "1"]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("precision")
    assert lines[1].startswith("reference  exact")
    assert lines[-1].startswith(("took ", "nothing faster"))
    assert "measuring reference, exact pixels, on 16 images" in ran.stderr
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert found["images"] == 16
    assert found["rows"][0]["min_cosine"] == 1
