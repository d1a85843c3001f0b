"""`clip models` and `clip fetch`: what is listed, fetched, checked and written."""

import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit import ROOT, formula
from kit.in_process import Run

import clip.clip
from clip.errors import CheckpointError, InputError, UnknownModelError, WeightsMissingError
from clip.jobs.models import FetchJob
from clip.weights import catalog, locate, published, releases
from clip.weights.architectures import find_architecture
from clip.weights.checkpoints import read_checkpoint
from clip.weights.families import lay_out
from clip.weights.pe import find_pe
from clip.weights.siglip import find_siglip


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
    others, rows = rows[9:], rows[:9]
    assert [row["name"] for row in others] == list(published.PUBLISHED)
    assert [row["name"] for row in rows] == clip.clip.available_models()
    assert all(row["imagenet"] and row["source"] for row in rows)
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
    assert len(table) == 13 + len(others)
    assert table[-3] == ""
    assert table[-1].strip() == own["note"]
    assert sum("for research only" in line for line in table) == 4


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_what_is_said_of_a_model_of_others_is_what_its_networks_name_says(name: str) -> None:
    """Its shapes, by open_clip's configuration; the parameters to the 10,000 that open_clip rounds to."""
    model, network = published.PUBLISHED[name], name.partition("/")[0]
    architecture = find_architecture(network) or find_pe(network) or find_siglip(network)
    assert architecture is not None
    assert (model.dim, model.resolution_px) == (architecture.embed_dim, architecture.image_resolution)
    count = sum(p.numel() for p in lay_out(architecture).parameters())
    assert abs(count - model.parameters) <= 10_000


def test_a_short_name_is_known_in_both_spellings_and_stands_for_a_repository(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(repository: str, revision: str | None, *, cached_only: bool = False) -> Path:
        asked.append(f"{repository} {revision} {cached_only}")
        return cache

    monkeypatch.setattr(locate, "_fetch_snapshot", fetch)
    wanted = "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"
    for name in (
        "ViT-B-32-256/datacomp_s34b_b86k",
        "ViT-B-32-256__datacomp_s34b_b86k",
        "vit-b-32-256:DataComp_s34b_b86k",
    ):
        locate.check_name(name)
        assert locate.locate(name) == cache
        assert asked.pop() == f"{wanted} None False"
    locate.locate_here("ViT-B-32-256/datacomp_s34b_b86k")  # of a manifest: nobody is asked
    assert asked.pop() == f"{wanted} None True"
    with pytest.raises(UnknownModelError, match="Did you mean 'ViT-B-32-256/datacomp_s34b_b86k'"):
        locate.check_name("ViT-B-32-256/datacomp_s34b")


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


def test_the_lists_of_what_runs_are_those_of_the_catalog() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "make_model_lists.py"))
    for page in tool["PAGES"]:
        assert tool["update_lists"](page.read_text()) == page.read_text(), "run `python tools/make_model_lists.py`"
    assert sum(map(len, tool["list_families"]().values())) == len(published.PUBLISHED) + len(releases.RELEASES)
    assert tool["write_sentence"]() in (ROOT / "README.md").read_text()


def test_metas_names_of_a_pe_core_are_open_clips_and_its_repository_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file_name: str, **_: object) -> str:
        asked.append((repository, file_name))
        return str(tmp_path / file_name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(locate, "knows_host", lambda _: True)
    for name in locate.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    assert locate.locate("hf-hub:facebook/PE-Core-B16-224") == tmp_path / "PE-Core-B16-224.pt"
    assert asked == [("facebook/PE-Core-B16-224", "PE-Core-B16-224.pt")]
    assert published.find_published("PE-Core-G14-448") == "PE-Core-bigG-14-448/meta"
    locate.check_name("PE-Core-L14-336")
