"""A name or a path -> a model: every format, every way to name a file, and what is left of the file afterwards."""

import hashlib
import os
import resource
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from kit.archives import FORMATS, SMALLEST, StateDict, model_of

import clip
from clip.errors import CheckpointError, CheckpointKeyError, UnknownModelError, WeightsMissingError
from clip.model import CLIP, build_model, convert_weights
from clip.network.architecture import infer_architecture
from clip.network.records import Architecture
from clip.weights.checkpoints import draw_checkpoint
from clip.weights.releases import RELEASES, Release

TINY = ("tiny-vit", "tiny-rn")


@cache
def expected(name: str, fp16: bool) -> CLIP:
    """The fp32 model that a file of these weights gives, with the rounding of fp16 where the file has it."""
    model = model_of(formula.TINY[name])
    if fp16:
        convert_weights(model)
        model.float()
    return model


def features(model: CLIP) -> torch.Tensor:
    pixels = model.visual.input_resolution
    with torch.no_grad():
        images = model.encode_image(torch.linspace(-2, 2, 2 * 3 * pixels**2).reshape(2, 3, pixels, pixels))
        texts = model.encode_text(clip.tokenize(formula.TEXTS))
    return torch.cat([images, texts])


def assert_same_weights(model: CLIP, other: CLIP) -> None:
    found, wanted = model.state_dict(), other.state_dict()
    assert list(found) == list(wanted)
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least CLIP; tests read it only."""
    return FORMATS["zip"](tmp_path_factory.mktemp("weights") / "vit.pt", SMALLEST["vit"])


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", TINY)
def test_every_format_gives_the_weights_that_went_in(name: str, file_format: str, tmp_path: Path) -> None:
    path = FORMATS[file_format](tmp_path / "weights", formula.TINY[name])
    model, preprocess = clip.load(path, device="cpu")
    wanted = expected(name, fp16=file_format == "torchscript")
    assert_same_weights(model, wanted)
    torch.testing.assert_close(features(model), features(wanted), rtol=0, atol=1e-6)
    assert preprocess.transforms[0].size == formula.TINY[name].image_resolution


@pytest.mark.parametrize("as_given", [str, Path, os.fspath])
@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), None])
def test_a_file_and_a_device_may_be_given_in_any_way(
    as_given: Callable[[Path], Any], device: Any, vit_file: Path
) -> None:
    model, _ = clip.load(as_given(vit_file), device=device)
    places = {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]}
    assert places == {"cuda" if device is None and torch.cuda.is_available() else "cpu"}


def test_a_loaded_model_is_in_eval_mode_and_can_be_trained(vit_file: Path) -> None:
    model, _ = clip.load(vit_file, device="cpu")
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model(torch.ones(1, 3, 32, 32), torch.ones(1, 4, dtype=torch.int64))[0].sum().backward()
    assert model.visual.conv1.weight.grad is not None


@pytest.mark.parametrize("name", TINY)
def test_a_saved_state_dict_loads_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = expected(name, fp16=False)
    torch.save(model.state_dict(), tmp_path / "saved.pt")
    assert_same_weights(clip.load(tmp_path / "saved.pt", device="cpu")[0], model)


@pytest.mark.parametrize("file_format", ["torchscript", "zip", "legacy", "safetensors"])
def test_a_model_and_its_file_live_apart(file_format: str, tmp_path: Path) -> None:
    path = FORMATS[file_format](tmp_path / "weights", SMALLEST["vit"])
    content = path.read_bytes()
    model, _ = clip.load(path, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == content
    again, _ = clip.load(path, device="cpu")
    path.write_bytes(bytes(len(content)))
    path.unlink()
    assert again.token_embedding.weight.abs().sum() > 0


@contextmanager
def open_files_limited_to(more: int) -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("file_format", ["torchscript", "zip", "legacy", "safetensors"])
def test_a_model_may_have_more_tensors_than_a_process_may_open_files(file_format: str, tmp_path: Path) -> None:
    # RN50x64 has 1,353 tensors; Linux allows 1,024 open files by default and macOS 256.
    path = FORMATS[file_format](tmp_path / "weights", SMALLEST["rn"])
    with open_files_limited_to(80):
        model, _ = clip.load(path, device="cpu")
    assert len(model.state_dict()) > 100


def test_the_callers_state_dict_is_left_as_it_is() -> None:
    given = formula.state_dict(SMALLEST["vit"]) | {"input_resolution": torch.tensor(32)}
    before = {key: tensor.clone() for key, tensor in given.items()}
    model = build_model(given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert list(given) == list(before)
    assert all(torch.equal(given[key], before[key]) for key in before)
    assert model.visual.conv1.weight.dtype == torch.float16


def test_jit_warns_once_at_the_callers_line_and_gives_the_same_weights(vit_file: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = clip.load(vit_file, device="cpu", jit=True)
    assert [(warning.category, warning.filename) for warning in caught] == [(UserWarning, __file__)]
    assert_same_weights(model, clip.load(vit_file, device="cpu")[0])


# Names.


@pytest.mark.parametrize("name", ["RN51", "vit-b/33", "", "no/such/file.pt", "x" * 5_000, "a\0b"], ids=len)
def test_what_is_neither_a_name_nor_a_file_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        clip.load(name, device="cpu")
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value).startswith(f"model {name[:200]!r}: not found")
    assert str(clip.available_models()) in str(caught.value)


@pytest.mark.parametrize("name", [None, 32, ["RN50"]], ids=repr)
def test_what_cannot_be_a_path_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError):
        clip.load(name, device="cpu")


def test_a_released_name_without_its_file_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    release = RELEASES["ViT-B/32"]
    with pytest.raises(WeightsMissingError) as caught:
        clip.load("ViT-B/32", device="cpu", download_root=tmp_path)
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value).startswith(f"{tmp_path / 'ViT-B-32.pt'}: not there")
    assert f"sha256 {release.sha256}." in str(caught.value)
    assert f"Fetch {release.url} " in str(caught.value)


def test_a_folder_in_the_place_of_a_cached_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        clip.load("RN50", device="cpu", download_root=tmp_path)


def add_release(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> str:
    url = f"https://example.com/models/{hashlib.sha256(path.read_bytes()).hexdigest()}/{path.name}"
    monkeypatch.setitem(clip.clip._MODELS, name, url)
    return url


def test_a_verified_cached_file_loads_by_its_name(vit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_release(monkeypatch, "mine", vit_file)
    model, _ = clip.load("mine", device="cpu", download_root=str(vit_file.parent))
    assert_same_weights(model, model_of(SMALLEST["vit"]))


def test_without_a_root_the_cache_is_the_references(
    vit_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_release(monkeypatch, "mine", vit_file)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    with pytest.raises(WeightsMissingError, match=f"^{tmp_path}/.cache/clip/vit.pt: not there"):
        clip.load("mine", device="cpu")


def test_a_name_wins_over_a_file_of_the_same_name(
    vit_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    Path("RN50").write_bytes(vit_file.read_bytes())
    with pytest.raises(WeightsMissingError):
        clip.load("RN50", device="cpu", download_root=tmp_path / "cache")
    assert_same_weights(clip.load("./RN50", device="cpu")[0], model_of(SMALLEST["vit"]))


# Untrained weights.


@pytest.fixture
def small_release(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(RELEASES, "small", Release("small.pt", "0" * 64, 1, 1, 0.0, SMALLEST["vit"], ()))
    return "small"


def test_untrained_weights_follow_from_the_seed_alone(small_release: str) -> None:
    first, other = draw_checkpoint(small_release, 1), draw_checkpoint(small_release, 2)
    torch.manual_seed(7)
    again = draw_checkpoint(small_release, 1)
    assert all(torch.equal(first.state_dict[key], again.state_dict[key]) for key in first.state_dict)
    assert not torch.equal(first.state_dict["text_projection"], other.state_dict["text_projection"])
    assert (first.source, other.source) == ("untrained:1", "untrained:2")
    assert (first.seed, other.seed) == (1, 2)
    assert first.architecture == SMALLEST["vit"] == infer_architecture(first.state_dict)


def test_untrained_weights_leave_torchs_random_numbers_alone(small_release: str) -> None:
    before = torch.get_rng_state()
    draw_checkpoint(small_release, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_untrained_weights_need_a_released_name() -> None:
    with pytest.raises(UnknownModelError, match="'tiny': not found"):
        draw_checkpoint("tiny", 0)


# What is read off the shapes.


def with_entries(architecture: str, entries: dict[str, Any]) -> StateDict:
    """The weights with others in their place, and without those that are None."""
    changed = formula.state_dict(SMALLEST[architecture]) | entries
    return {key: tensor for key, tensor in changed.items() if tensor is not None}


def refusal_of(content: object, path: Path) -> CheckpointError:
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        clip.load(path, device="cpu")
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.item == str(path), "the path once, in place of what the inner error was about"
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        *(("vit", key) for key in ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")),
        *(("rn", key) for key in ("visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")),
        *(("rn", key) for key in ("ln_final.weight", "text_projection", "positional_embedding")),
        ("vit", "token_embedding.weight"),
    ],
)
def test_a_missing_entry_that_tells_the_architecture_is_a_key_error(
    architecture: str, key: str, tmp_path: Path
) -> None:
    error = refusal_of(with_entries(architecture, {key: None}), tmp_path / "weights.pt")
    assert isinstance(error, CheckpointKeyError)
    assert isinstance(error, KeyError)
    assert "is missing" in str(error)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


LONG = "z" * 1_000_000


@pytest.mark.parametrize(
    ("architecture", "entries", "message"),
    [
        ("vit", {"visual.positional_embedding": zeros(7, 64)}, "has 7 positions, expected a square number and 1 more"),
        ("rn", {"visual.attnpool.positional_embedding": zeros(3, 64)}, "has 3 positions"),
        ("rn", {"visual.attnpool.positional_embedding": zeros(1, 64)}, "has 1 positions"),
        ("vit", {"ln_final.weight": zeros(65)}, "entries do not fit"),
        ("vit", {"visual.conv1.weight": zeros(63, 3, 16, 16)}, "entries do not fit"),
        ("vit", {"visual.conv1.weight": zeros(64, 3)}, "has shape (64, 3), expected 4 sizes above 0"),
        ("vit", {"visual.conv1.weight": zeros(64, 3, 0, 0)}, "has shape (64, 3, 0, 0)"),
        (
            "vit",
            {"visual.transformer.resblocks.0.attn.in_proj_weight": None},
            "the vision depth is 0, by the weights' shapes",
        ),
        ("vit", {"ln_final.bias": None}, "missing ln_final.bias"),
        ("vit", {"logit_scale": zeros(1)}, "logit_scale is (1,) and should be ()"),
        ("vit", {"visual.ln_pre.bias": zeros(32)}, "visual.ln_pre.bias is (32,) and should be (64,)"),
        ("rn", {"visual.proj.weight": zeros(3)}, "unexpected 'visual.proj.weight'"),
        ("vit", {"visual.epoch": 3}, "entry 'visual.epoch' is a int, expected a tensor"),
        ("vit", {"visual.notes": ["a", {"b": None}]}, "entry 'visual.notes' is a list"),
        ("vit", {"logit_bias": zeros(1)}, "unexpected 'logit_bias'"),
        ("vit", {"ln_final.weight": torch.zeros(64, dtype=torch.int8)}, "entry 'ln_final.weight' is of torch.int8"),
        ("vit", {LONG: zeros(1)}, "'zzzz"),
        ("vit", {"two\nlines\x1b[31m": zeros(1)}, r"two\nlines\x1b[31m"),
    ],
    ids=lambda value: value.replace(" ", "-")[:30] if isinstance(value, str) else "",
)
def test_weights_that_are_no_clip_are_refused_with_what_was_found(
    architecture: str, entries: dict[str, Any], message: str, tmp_path: Path
) -> None:
    error = str(refusal_of(with_entries(architecture, entries), tmp_path / "weights.pt"))
    assert message in error
    assert len(error) < 1_000
    assert error.isprintable()


@pytest.mark.parametrize(
    "content", [{}, [], (), 3, "weights", None, [torch.zeros(1)], {"state_dict": {}}, torch.zeros(1)]
)
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    assert "expected a state dict" in str(refusal_of(content, tmp_path / "weights.pt"))


def architectures() -> st.SearchStrategy[Architecture]:
    number, few = st.integers(1, 80), st.integers(1, 3)
    patch = st.integers(1, 16)
    widths = st.integers(1, 3).map(lambda heads: 64 * heads)
    vit = st.tuples(patch, st.integers(1, 6), few, widths).map(lambda v: (v[0] * v[1], v[2], v[3], v[0]))
    resnet = st.tuples(st.integers(1, 4), st.tuples(few, few, few, few), st.sampled_from([2, 4, 6])).map(
        lambda v: (32 * v[0], v[1], v[2], None)
    )
    text = st.tuples(number, number, widths, few)
    return st.builds(
        lambda dim, vision, text: Architecture(dim, *vision, text[0], text[1], text[2], text[2] // 64, text[3]),
        number,
        vit | resnet,
        text,
    )


@given(architectures())
@settings(deadline=None, max_examples=40)
def test_shapes_tell_the_architecture_they_were_made_of(architecture: Architecture) -> None:
    assert infer_architecture(formula.layout(architecture).state_dict()) == architecture
