"""`clip models --check`: each row can fail, and the command's exit code says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import formula, siglip
from kit.in_process import Run
from PIL import Image

from clip.errors import UnknownModelError, WeightsMissingError
from clip.health import check
from clip.jobs.health import CheckRow


def passed(rows: list[CheckRow]) -> dict[str, bool | None]:
    return {row.check: row.passed for row in rows}


def test_a_model_that_is_right_passes_and_one_of_a_siglip_too(tmp_path: Path) -> None:
    torch.save(formula.state_dict(formula.TINY["tiny-vit"]), tmp_path / "clip.pt")
    for path in (tmp_path / "clip.pt", siglip.write(tmp_path / "siglip")):
        rows = check.check_model(str(path))
        assert not [row for row in rows if row.passed is False]
        assert sum(row.passed is True for row in rows) >= 5


def test_pixels_that_are_others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "draw_image", lambda: Image.new("RGB", (640, 427)))
    assert [check._check_pixels(kind).passed for kind in check.GOLDEN_PIXELS] == [False, False]


def test_tokens_that_are_others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.hash_tokens() == check.GOLDEN_TOKENS
    monkeypatch.setattr(check, "TEXTS", ("another",))
    assert check.hash_tokens() != check.GOLDEN_TOKENS


def test_a_path_that_is_not_exact_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    torch.save(formula.state_dict(formula.TINY["tiny-vit"]), tmp_path / "clip.pt")
    exact = check._run_in_float64
    monkeypatch.setattr(
        check, "_run_in_float64", lambda *args: tuple(side + 0.05 * side.std() for side in exact(*args))
    )
    code, out, _ = run("models", "--check", str(tmp_path / "clip.pt"), "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert {row["check"].partition(",")[0] for row in rows if row["passed"] is False} >= {"fp32", "fp32 beside float64"}
    code, out, _ = run("models", "--check", str(tmp_path / "clip.pt"))
    assert (code, out.count("DIFFERS") > 1) == (1, True)


def test_the_published_figures_are_compared_component_by_component() -> None:
    figures = check.read_prompts()
    assert len(figures["rows"]) == 80
    assert {len(row["values"]) for row in figures["rows"]} == {len(figures["components"])} == {32}
    features = np.zeros((80, 512))
    features[:, figures["components"]] = [row["values"] for row in figures["rows"]]
    norms = np.array([row["norm"] for row in figures["rows"]])
    others = [n for n in range(512) if n not in figures["components"]]
    rest = np.sqrt(np.maximum(norms**2 - np.square(features).sum(axis=1), 0))
    features[:, others[0]] = rest
    assert max(check.compare_prompts(features)) < 1e-3
    features[17, 92] += 0.04
    component, _ = check.compare_prompts(features)
    assert component > check.COMPONENT_TOLERANCE
    assert check.compare_prompts(features * 1.01)[1] > check.NORM_TOLERANCE


def test_random_weights_of_the_same_network_do_not_pass_for_openais() -> None:
    class Random:
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.randn(len(texts), 512, generator=torch.Generator().manual_seed(0)) / 2

    rows = check._check_prompts(Random(), "ViT-B/32")  # type: ignore[arg-type]
    assert [row.passed for row in rows] == [False, False]
    assert [row.passed for row in check._check_prompts(Random(), None)] == [None]  # type: ignore[arg-type]


def test_weights_that_are_not_here_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(WeightsMissingError, match="clip fetch ViT-B/32"):
        check.check_model("ViT-B-32", str(tmp_path))
    with pytest.raises(UnknownModelError):
        check.check_model("ViT-B/33", str(tmp_path))
    assert run("models", "--architecture", "ViT-H-14")[0] == 2
