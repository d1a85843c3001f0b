"""The bench's arithmetic: operations counted, ratios paired, bars held, tables written. No speed is measured here."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from clip.weights.releases import RELEASES

sys.path.append(str(Path(__file__).parent.parent.parent / "bench"))
bar, flops, peers, records, session, table = (
    importlib.import_module(name) for name in ("bar", "flops", "peers", "records", "session", "table")
)

# GFLOP of an image: OpenAI's graph, and what one vector needs.
COUNTS = {
    "RN50": (11.59, 10.78), "RN101": (19.01, 18.20), "RN50x4": (41.16, 39.07), "RN50x16": (145.74, 140.38),
    "RN50x64": (520.25, 507.30), "ViT-B/32": (8.82, 8.12), "ViT-B/16": (35.13, 32.24), "ViT-L/14": (162.03, 155.33),
    "ViT-L/14@336px": (381.92, 366.10),
}  # fmt: skip
MACHINE = {"cpu": "A processor", "cores": 2, "flags": ["avx2"], "python": "3.11"}


def line(peer: str, precision: str = "fp32", **more: object) -> dict:
    common = {"row": "encode", "model": "ViT-B/32", "device": "cpu", "machine": MACHINE, "commit": "abc1234"}
    return common | {"date": "2026-11-21 12:00", "peer": peer, "precision": precision} | more


def measured(peer: str, ratio: float, precision: str = "fp32", **more: object) -> dict:
    speed = {"images_per_s": 20 * ratio, "seconds_per_image": 0.05 / ratio, "ratio": ratio, "batch": 32, "turns": 5}
    return line(peer, precision, **speed) | more


@pytest.mark.parametrize("model", COUNTS)
def test_operations_are_those_counted_elsewhere(model: str) -> None:
    architecture = RELEASES[model].architecture
    assert (round(flops.full_gflops(architecture), 2), round(flops.lean_gflops(architecture), 2)) == COUNTS[model]


def test_a_ratio_is_made_within_a_turn() -> None:
    reference = records.Measured("openai", "fp32", seconds=[2.0, 4.0, 20.0], pictures=4)
    ours = records.Measured("ours", "fp32", seconds=[1.0, 2.0, 4.0], pictures=4)
    found = records.line("encode", "ViT-B/32", ours, reference)
    assert (found["ratio"], found["ratio_range"]) == (2.0, [2.0, 5.0])
    assert (found["images_per_s"], found["seconds_per_image"], found["turns"]) == (2.0, 0.5, 3)


def test_pictures_are_counted_on_both_sides_of_a_ratio() -> None:
    reference = records.Measured("openai", "fp32", seconds=[8.0], pictures=8)
    found = records.line("encode", "RN50", records.Measured("ours", "fp32", seconds=[1.0], pictures=4), reference)
    assert found["ratio"] == 4.0


@pytest.mark.parametrize(
    ("precision", "cosine", "counts"),
    [
        ("fp32", 0.99995, True),
        ("fp32", 0.9998, False),
        ("fp32", float("nan"), False),
        ("bf16", 0.9991, True),
        ("bf16", 0.99, False),
    ],
)
def test_the_speed_of_wrong_vectors_does_not_count(precision: str, cosine: float, counts: bool) -> None:
    wrong = records.Measured("peer", precision, seconds=[1.0], cosine=cosine)
    found = records.line("encode", "RN50", wrong, None)
    assert bar.counts(found) is counts
    assert counts or "minimum cosine" in found["problem"]


def test_the_lowest_cosine_is_that_of_the_worst_row() -> None:
    a = np.eye(3, dtype=np.float32)
    b = a.copy()
    b[2] = [0, 1, 1]
    assert records.lowest_cosine(a, 7 * a) == pytest.approx(1)
    assert records.lowest_cosine(a, b) == pytest.approx(0.5**0.5)
    assert np.isnan(records.lowest_cosine(a, b[:2]))


def test_a_bar_is_missed_below_it_and_open_without_a_number() -> None:
    found = {
        (verdict.bar.row, verdict.bar.models, verdict.bar.key, verdict.precision): verdict
        for verdict in bar.verdicts([measured("openai", 1.0), measured("ours", 1.29, gemm_share=0.9)])
    }
    vit = ("ViT-B/32",)
    assert table.outcome(found["encode", vit, "ratio", "fp32"]) == "missed"
    assert table.outcome(found["encode", vit, "gemm_share", "fp32"]) == "reached"
    assert table.outcome(found["encode", vit, "ratio", "bf16"]) == "open"
    mean = found["encode", bar.MODELS, "ratio", "fp32"]
    assert (table.outcome(mean), table.found_in(mean)) == ("open", "1.29 (1 of 9 measured)")


def test_a_mean_of_all_models_is_geometric() -> None:
    ratios = [1.0, 2.0] * 4 + [2**0.5]
    lines = [measured("ours", ratio, model=model) for model, ratio in zip(bar.MODELS, ratios, strict=True)]
    mean = next(v for v in bar.verdicts(lines) if v.bar.models == bar.MODELS and v.precision == "fp32")
    assert mean.found == pytest.approx(2**0.5)
    assert mean.reached


def test_bars_for_a_gpu_hold_only_there() -> None:
    found = bar.verdicts([measured("ours", 1.0, "fp16", device="cuda", gpu="NVIDIA H200", images_per_s=60_000)])
    assert {verdict.precision for verdict in found} == {"fp16"}
    assert [v.bar.models for v in found if v.reached] == [("ViT-B/32",)]
    assert bar.verdicts([measured("ours", 1.0, "fp16", device="cuda", gpu="Another")]) == []


def test_a_limit_in_seconds_holds_from_above() -> None:
    starts = [line("ours", row="start-first", imports_s=2.0, first_vector_s=1.6)]
    first = next(v for v in bar.verdicts(starts) if v.bar.row == "start-first")
    assert (first.found, first.reached) == (1.6, False)


def test_a_faster_peer_is_told_only_at_the_same_precision_and_with_right_vectors() -> None:
    lines = [measured("openai", 1.0), measured("ours", 1.4), measured("fast", 1.5), measured("ours", 2.9, "bf16")]
    lines += [measured("wrong", 9.0, problem="vectors differ"), measured("fast", 2.0, "bf16"), line("ceiling")]
    assert [(ours["precision"], other["peer"]) for ours, other in bar.faster_peers(lines)] == [("fp32", "fast")]


def test_the_table_shows_misses_and_what_has_no_number() -> None:
    lines = [
        measured("openai", 1.0),
        measured("ours", 1.2, gemm_share=0.8),
        line("onnxruntime", problem="absent: no net"),
    ]
    shown = table.markdown(lines)
    assert "| ViT-B/32 | 32 | 20 | 24 (1.20x) | openai 20 (1.00x) | 80% |" in shown
    assert "| encode, ratio | ViT-B/32 | fp32 | at least 1.3 | 1.2 | missed |" in shown
    assert "- onnxruntime, encode ViT-B/32 fp32: absent: no net" in shown
    assert "no peer is faster | all measured | same | none | none | reached |" in shown


def test_the_newest_line_of_a_kind_is_shown(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(measured("ours", ratio)) + "\n" for ratio in (1.1, 1.7)))
    assert [found["ratio"] for found in table.read(results)] == [1.7]


def test_pixels_made_fast_have_lines_and_bars_of_their_own_and_no_encoder() -> None:
    rows = [measured(peer, ratio, row="jpeg-web") for peer, ratio in (("openai", 1), ("ours", 1.2), ("ours-fast", 1.5))]
    shown = table.markdown(rows)
    assert "| JPEGs of 0.2 MP, images/s | ViT-B/32 | 20 | 24 (1.20x) |" in shown
    assert "| JPEGs of 0.2 MP, images/s, decode=fast | ViT-B/32 | 20 | 30 (1.50x) |" in shown
    [verdict] = [one for one in bar.verdicts(rows) if one.bar.peer == "ours-fast" and one.found is not None]
    assert (verdict.bar.row, verdict.precision, verdict.found, verdict.reached) == ("jpeg-web", "fp32", 1.5, True)
    assert bar.faster_peers(rows) == []
    options = session.Options("cpu", (), (), ("fp32",), ("ours", "ours-fast", "onnxruntime"), 1, None, Path())
    encode, files = (session.Session(options).contestants("RN50", decodes=decodes) for decodes in (False, True))
    assert [one.peer for one in encode] == ["openai", "ours", "onnxruntime"]
    assert [one.peer for one in files] == ["openai", "ours", "ours-fast"]


def test_a_table_replaces_what_is_between_the_markers() -> None:
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    assert table.replaced(text, "new\n") == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    with pytest.raises(ValueError, match="found no single pair"):
        table.replaced("no markers", "new\n")


def test_every_peer_has_its_versions_pinned() -> None:
    for peer in set(peers.PEERS) - set(peers.OWN):
        pins = (peers.REQUIREMENTS / f"{peer}.txt").read_text().splitlines()
        assert [pin for pin in pins if "==" not in pin and not pin.startswith(("#", "-r "))] == []
