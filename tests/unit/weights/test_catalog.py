"""`clip models` and `clip fetch`: what is listed, fetched, checked and written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit import formula
from kit.in_process import Run

import clip.clip
from clip.errors import CheckpointError, InputError, UnknownModelError, WeightsMissingError
from clip.jobs.models import FetchJob
from clip.weights import catalog, locate, releases
from clip.weights.checkpoints import read_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose RN50 is a tiny model, known by its own hash and size; the network is forbidden."""
    file = tmp_path / "RN50.pt"
    torch.save(formula.state_dict(formula.TINY["tiny-rn"]), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tiny = replace(releases.RELEASES["RN50"], sha256=digest, size_bytes=file.stat().st_size, hub=())
    monkeypatch.setitem(releases.RELEASES, "RN50", tiny)
    monkeypatch.setitem(locate.URLS, "RN50", tiny.url)
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def test_the_nine_are_listed_with_what_they_cost_and_where_they_are(cache: Path, run: Run) -> None:
    code, out, err = run("models", "--json", "--download-root", str(cache))
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    own = rows.pop()
    assert [row["name"] for row in rows] == clip.clip.available_models()
    assert [row["cached"] for row in rows] == [str(cache / "RN50.pt")] + [None] * 8
    assert {row["note"] for row in rows} == {""}
    assert (own["name"], own["note"]) == ("sketch", "knows drawn shapes only; for photographs use ViT-B/32")
    model, _ = clip.load("sketch", device="cpu")
    assert own["parameters"] == sum(p.numel() for p in model.parameters())
    assert (own["dim"], own["resolution_px"]) == (model.text_projection.shape[1], model.visual.input_resolution)
    for row in rows:
        architecture = releases.RELEASES[row["name"]].architecture
        assert row["parameters"] == sum(p.numel() for p in formula.layout(architecture).parameters())
        assert (row["dim"], row["resolution_px"]) == (architecture.embed_dim, architecture.image_resolution)
    table = run("models", "--download-root", str(cache))[1].splitlines()
    assert len(table) == 13
    assert table[10] == ""
    assert table[12].strip() == own["note"]


def test_the_sketch_model_is_small_and_needs_no_network_and_no_cache(tmp_path: Path) -> None:
    assert locate.SKETCH_FILE.stat().st_size <= 8_000_000
    assert locate.locate("sketch", tmp_path) == locate.SKETCH_FILE
    assert "sketch" not in clip.available_models()
    assert clip.Encoder("sketch", device="cpu").tokenize("a red star").shape == (1, 32)
    with pytest.raises(UnknownModelError, match="'sketch', or one of"):
        locate.locate("scetch", tmp_path)


def test_a_user_may_put_another_model_in_its_place(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"")
    assert locate.locate("sketch", urls={"sketch": "https://x/0/y"}, download=lambda *_: str(other)) == other


def test_fetch_says_where_the_weights_are(cache: Path, run: Run) -> None:
    digest = releases.RELEASES["RN50"].sha256
    assert run("fetch", "RN50", "--download-root", str(cache)) == (0, f"RN50\t{cache / 'RN50.pt'}\t{digest}\n", "")
    code, out, err = run("fetch", "RN101", "--download-root", str(cache))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert releases.RELEASES["RN101"].sha256 in err


def test_check_finds_the_bit_that_turned(cache: Path) -> None:
    assert [found.name for found in catalog.fetch(FetchJob(check=True, download_root=str(cache)))] == ["RN50"]
    content = bytearray((cache / "RN50.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (cache / "RN50.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"RN50\.pt: sha256 .* Remove the file and run: clip fetch RN50"):
        catalog.fetch(FetchJob(check=True, download_root=str(cache)))
    with pytest.raises(WeightsMissingError, match="clip fetch RN101"):
        catalog.fetch(FetchJob(names=("RN101",), check=True, download_root=str(cache)))
    with pytest.raises(WeightsMissingError, match="not a released name"):
        catalog.fetch(FetchJob(names=("hf-hub:a/b",), check=True, download_root=str(cache)))


def test_to_writes_safetensors_with_openais_names(cache: Path, run: Run) -> None:
    file = cache / "rn50.safetensors"
    code, out, _ = run("fetch", "RN50", "--download-root", str(cache), "--to", str(file))
    assert (code, out.splitlines()[-1]) == (0, f"RN50\t{file}")
    state_dict = read_checkpoint(file).state_dict
    wanted = formula.state_dict(formula.TINY["tiny-rn"])
    assert state_dict.keys() == wanted.keys()
    assert all(torch.equal(state_dict[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    "job",
    [{}, {"names": ("a", "b"), "to": "a.safetensors"}, {"names": ("a",), "to": "a.pt"}, {"check": True, "to": "a"}],
)
def test_a_job_that_makes_no_sense_is_refused(job: dict[str, object]) -> None:
    with pytest.raises(InputError):
        FetchJob(**job)  # type: ignore[arg-type]
