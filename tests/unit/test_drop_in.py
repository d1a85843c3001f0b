"""The package as code written for openai/CLIP uses it: names, surgery, hooks, training, dtypes and errors."""

import copy
import gzip
import importlib.util
import inspect
import io
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import ROOT, formula
from kit.programs import command
from torch import Tensor, nn

import clip
from clip import clip as clip_module
from clip import foreign_distribution
from clip.clip import _transform, build_model, tokenize
from clip.errors import InputTypeError, TextTooLongError
from clip.model import CLIP, LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer

STATE_DICTS = {name: formula.state_dict(formula.TINY[name]) for name in ("tiny-vit", "tiny-rn")}
HUB_NAMES = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT_B_32", "ViT_B_16", "ViT_L_14", "ViT_L_14_336px"]


def make(name: str, cls: type[CLIP] = CLIP) -> CLIP:
    model = cls(**vars(formula.TINY[name]))
    model.load_state_dict(STATE_DICTS[name])
    return model.eval()


@pytest.fixture
def vit() -> CLIP:
    return make("tiny-vit")


@pytest.fixture
def resnet() -> CLIP:
    return make("tiny-rn")


@pytest.fixture(params=list(STATE_DICTS))
def model(request: pytest.FixtureRequest) -> CLIP:
    return make(request.param)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(STATE_DICTS["tiny-vit"], path)
    return path


def images(model: CLIP, count: int = 2) -> Tensor:
    preprocess = _transform(model.visual.input_resolution)
    return torch.stack([preprocess(formula.picture(i, 90, 70)) for i in range(count)])


def spread(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the expected values' RMS."""
    return float((found.double() - expected.double()).abs().max() / expected.double().square().mean().sqrt())


# Names.


@pytest.mark.parametrize("name", ["clip", "model", "simple_tokenizer"])
def test_a_bare_import_gives_the_modules_as_attributes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(clip, name, raising=False)  # as before anything imported the module
    assert getattr(clip, name) is sys.modules[f"clip.{name}"]
    assert inspect.ismodule(getattr(clip, name))


def test_clip_from_clip_is_the_module_with_its_private_names() -> None:
    assert clip_module is sys.modules["clip.clip"]
    assert clip_module.load is clip.load
    assert clip_module.build_model is build_model is clip.model.build_model
    assert clip_module.tokenize is tokenize is clip.tokenize
    assert isinstance(clip_module._tokenizer, _Tokenizer)


def test_a_star_import_gives_the_six_names_of_the_reference() -> None:
    found: dict[str, Any] = {}
    exec("from clip import *", found)
    assert {"available_models", "clip", "load", "model", "simple_tokenizer", "tokenize"} <= set(found)
    exec("from clip.clip import *", only := {"__builtins__": {"__import__": __import__}})
    assert set(only) == {"__builtins__", "available_models", "load", "tokenize"}


def test_models_are_listed_in_the_order_of_their_release_in_a_list_of_the_callers_own() -> None:
    names = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
    assert clip.available_models() == names == list(clip_module._MODELS)
    clip.available_models().clear()
    assert clip.available_models() == names


@pytest.fixture(scope="module")
def imported_modules() -> list[str]:
    """The new modules of `import clip` in a fresh interpreter."""
    return json.loads(subprocess.run(command("list_imports"), capture_output=True, check=True).stdout)


def test_the_import_loads_no_third_party_module(imported_modules: list[str]) -> None:
    assert "clip" in imported_modules
    assert {module.partition(".")[0] for module in imported_modules} - sys.stdlib_module_names == {"clip"}


def test_the_import_loads_few_modules_so_that_it_takes_milliseconds(imported_modules: list[str]) -> None:
    assert len(imported_modules) <= 20, imported_modules


# The transform.


def test_the_transform_is_indexed_and_sliced_as_torchvisions() -> None:
    preprocess = _transform(224)
    assert preprocess.transforms[0].size == 224
    assert preprocess.transforms[1].size == (224, 224)
    assert preprocess.transforms[-1].mean == (0.48145466, 0.4578275, 0.40821073)
    assert preprocess.transforms[-1].std == (0.26862954, 0.26130258, 0.27577711)
    assert [len(preprocess.transforms[:2]), len(preprocess.transforms[4:]), len(preprocess.transforms)] == [2, 1, 5]
    assert preprocess.transforms[2] is clip_module._convert_image_to_rgb


def test_steps_of_the_transform_called_one_by_one_give_what_it_gives() -> None:
    preprocess, image = _transform(64), formula.picture(0, 200, 100)
    step: Any = image
    for transform in preprocess.transforms[:2]:
        step = transform(step)
    assert step.size == (64, 64)
    step = preprocess.transforms[3](preprocess.transforms[2](step))
    assert (step.shape, step.dtype) == ((3, 64, 64), torch.float32)
    assert 0 <= step.min() < step.max() <= 1
    for transform in preprocess.transforms[4:]:
        step = transform(step)
    assert torch.equal(step, preprocess(image))


def test_a_step_put_in_the_place_of_another_takes_effect() -> None:
    preprocess = _transform(64)
    preprocess.transforms[1] = lambda image: image
    preprocess.transforms[2] = lambda image: image.convert("L").convert("RGB")
    pixels = preprocess(formula.picture(0, 200, 100))
    normalize = preprocess.transforms[-1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalize.mean, normalize.std))
    grey = pixels * std + mean
    assert pixels.shape == (3, 64, 128)
    assert torch.allclose(grey[0], grey[2], atol=1e-6)


def test_the_transform_travels_to_the_workers_of_a_data_loader() -> None:
    preprocess, image = _transform(64), formula.picture(1, 99, 77)
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(image), preprocess(image))


# Subclasses, patches, hooks and surgery.


def test_a_subclass_overrides_a_method_that_forward_calls() -> None:
    class Opposite(CLIP):
        def encode_image(self, image: Tensor) -> Tensor:
            return -super().encode_image(image)

    plain, changed = make("tiny-vit"), make("tiny-vit", Opposite)
    tokens = tokenize(formula.TEXTS)
    with torch.no_grad():
        assert torch.equal(changed(images(changed), tokens)[0], -plain(images(plain), tokens)[0])


@pytest.mark.parametrize("on_class", [True, False])
def test_a_patched_method_is_the_one_that_runs(on_class: bool, vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_text(self: CLIP, text: Tensor) -> Tensor:
        return self.text_projection[: len(text)]

    def attention(self: ResidualAttentionBlock, x: Tensor) -> Tensor:
        calls.append(self)
        return torch.zeros_like(x)

    calls: list[ResidualAttentionBlock] = []
    block = vit.visual.transformer.resblocks[0]
    monkeypatch.setattr(CLIP if on_class else vit, "encode_text", encode_text.__get__(None if on_class else vit, CLIP))
    monkeypatch.setattr(
        ResidualAttentionBlock if on_class else block,
        "attention",
        attention.__get__(None if on_class else block, ResidualAttentionBlock),
    )
    _, per_text = vit(images(vit), tokenize(["a", "b", "c"]))
    assert per_text.shape == (3, 2)
    assert calls == (list(vit.visual.transformer.resblocks) if on_class else [block])


def test_a_class_replaced_in_the_module_is_what_new_models_are_built_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip.model, "QuickGELU", nn.GELU)
    monkeypatch.setattr(clip.model, "VisionTransformer", lambda *args: VisionTransformer(*args).double())
    built = formula.layout(formula.TINY["tiny-vit"])
    assert isinstance(built.transformer.resblocks[0].mlp.gelu, nn.GELU)
    assert built.dtype == torch.float64


def test_hooks_on_blocks_see_sequence_first_tensors_and_hooks_inside_fire(vit: CLIP) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            seen[name] = tuple((output[0] if isinstance(output, tuple) else output).shape)

        return hook

    for i, block in enumerate(vit.visual.transformer.resblocks):
        block.register_forward_hook(watch(f"block {i}"))
    for name in ("attn", "ln_1", "ln_2", "mlp", "mlp.c_fc", "mlp.gelu", "mlp.c_proj"):
        vit.visual.transformer.resblocks[-1].get_submodule(name).register_forward_hook(watch(name))
    vit.transformer.resblocks[0].register_forward_hook(watch("text"))
    with torch.no_grad():
        vit(images(vit, 3), tokenize(formula.TEXTS))
    rows = (17, 3)  # 4 x 4 patches and the class token, images
    assert seen == {
        **{name: (*rows, 64) for name in ("block 0", "block 1", "attn", "ln_1", "ln_2", "mlp", "mlp.c_proj")},
        **{name: (*rows, 256) for name in ("mlp.c_fc", "mlp.gelu")},
        "text": (77, 2, 64),
    }


def test_what_a_hook_returns_replaces_the_output(vit: CLIP) -> None:
    before = vit.encode_image(images(vit))
    hook = vit.visual.transformer.resblocks[0].register_forward_hook(lambda _module, _args, output: output * 1.5)
    during = vit.encode_image(images(vit))
    hook.remove()
    assert not torch.allclose(during, before, atol=1e-3)
    assert torch.equal(vit.encode_image(images(vit)), before)


def test_without_its_projection_the_tower_gives_features_of_its_width(vit: CLIP) -> None:
    proj, projected = vit.visual.proj, vit.encode_image(images(vit))
    vit.visual.proj = None
    features = vit.encode_image(images(vit))
    assert (features.shape, projected.shape) == ((2, 64), (2, 32))
    assert torch.allclose(features @ proj, projected, atol=1e-5)


def test_a_module_put_in_the_place_of_another_takes_effect(vit: CLIP, resnet: CLIP) -> None:
    shorter = copy.deepcopy(vit)
    shorter.visual.transformer.resblocks = shorter.visual.transformer.resblocks[:1]
    vit.visual.transformer.resblocks[1] = nn.Identity()
    assert torch.equal(vit.encode_image(images(vit)), shorter.encode_image(images(vit)))
    resnet.visual.attnpool = nn.Identity()
    assert resnet.encode_image(images(resnet)).shape == (2, 512, 2, 2)


def test_the_text_tower_taken_apart_as_prompt_learners_do_gives_the_same_features(vit: CLIP) -> None:
    tokens = tokenize(formula.TEXTS)
    x = vit.token_embedding(tokens).type(vit.dtype) + vit.positional_embedding.type(vit.dtype)
    x = vit.ln_final(vit.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)).type(vit.dtype)
    x = x[torch.arange(x.shape[0]), tokens.argmax(dim=-1)] @ vit.text_projection
    assert torch.equal(x, vit.encode_text(tokens))
    assert isinstance(vit.transformer, Transformer)
    assert isinstance(vit.ln_final, LayerNorm)
    assert isinstance(vit.transformer.resblocks[0].mlp.gelu, QuickGELU)


def test_a_mask_put_on_a_block_is_used_and_none_lifts_it(vit: CLIP) -> None:
    x = torch.randn(77, 1, 64, generator=torch.manual_seed(0))
    block = vit.transformer.resblocks[0]
    causal = block(x)
    block.attn_mask = None
    free = block(x)
    block.attn_mask = torch.full((77, 77), float("-inf"), dtype=torch.float64).triu_(1)  # cast to what comes in
    assert torch.equal(block(x), causal)
    assert not torch.allclose(free[0], causal[0], atol=1e-3)


def test_masks_go_to_the_device_of_the_input_even_where_the_model_was_built_on_another() -> None:
    built = formula.layout(formula.TINY["tiny-vit"])  # built under torch.device("meta")
    assert built.encode_text(torch.zeros(2, 77, dtype=torch.int64, device="meta")).shape == (2, 32)


# Training, copies and files.


def test_gradients_reach_every_parameter_of_the_image_tower(model: CLIP) -> None:
    assert all(parameter.requires_grad for parameter in model.parameters())
    features = model.encode_image(images(model))
    (features * torch.randn(features.shape, generator=torch.manual_seed(0))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.visual.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # What a softmax adds to every score alike changes nothing, but for rounding.
    assert {name for name, gradient in gradients.items() if not gradient.any()} <= {"attnpool.k_proj.bias"}
    assert all(parameter.grad is None for parameter in model.transformer.parameters())


def test_gradients_of_the_logits_reach_the_temperature_and_both_towers(model: CLIP) -> None:
    per_image, per_text = model(images(model), tokenize(formula.TEXTS))
    target = torch.arange(2)
    loss = nn.functional.cross_entropy(per_image, target) + nn.functional.cross_entropy(per_text, target)
    loss.backward()
    assert float(model.logit_scale.grad) != 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_training_updates_the_running_statistics_and_evaluation_does_not(resnet: CLIP) -> None:
    norm = resnet.visual.layer1[0].bn1
    before = norm.running_mean.clone()
    resnet.encode_image(images(resnet))
    assert torch.equal(norm.running_mean, before)
    resnet.train().encode_image(images(resnet))
    assert not torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 2  # the formula starts at 1


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_gives_the_same_features_and_shares_nothing(how: str, model: CLIP) -> None:
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    tokens = tokenize(formula.TEXTS)
    assert torch.equal(other.encode_image(images(model)), model.encode_image(images(model)))
    with torch.no_grad():
        model.positional_embedding.add_(1)
    assert not torch.equal(other.encode_text(tokens), model.encode_text(tokens))


def block_keys(prefix: str, layers: int) -> list[str]:
    attn = [f"attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
    rest = [f"{name}.{kind}" for name in ("ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2") for kind in ("weight", "bias")]
    return [f"{prefix}resblocks.{i}.{name}" for i in range(layers) for name in attn + rest]


def norm_keys(prefix: str) -> list[str]:
    return [prefix + n for n in (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")]


def bottleneck_keys(prefix: str) -> list[str]:
    pairs = [[f"{prefix}conv{i}.weight", *norm_keys(f"{prefix}bn{i}")] for i in (1, 2, 3)]
    return [key for pair in pairs for key in pair]


def reference_keys(name: str) -> list[str]:
    """Keys in the order of openai/CLIP@d05afc4."""
    keys = ["positional_embedding", "text_projection", "logit_scale"]
    if name == "tiny-vit":
        keys += [f"visual.{key}" for key in ("class_embedding", "positional_embedding", "proj", "conv1.weight")]
        keys += ["visual.ln_pre.weight", "visual.ln_pre.bias", *block_keys("visual.transformer.", 2)]
        keys += ["visual.ln_post.weight", "visual.ln_post.bias"]
    else:
        keys += bottleneck_keys("visual.")
        for layer in (1, 2, 3, 4):
            keys += bottleneck_keys(first := f"visual.layer{layer}.0.")
            keys += [f"{first}downsample.0.weight", *norm_keys(f"{first}downsample.1")]
        keys += ["visual.attnpool.positional_embedding"]
        keys += [f"visual.attnpool.{p}_proj.{kind}" for p in "kqvc" for kind in ("weight", "bias")]
    keys += block_keys("transformer.", 2)
    return [*keys, "token_embedding.weight", "ln_final.weight", "ln_final.bias"]


@pytest.mark.parametrize("name", list(STATE_DICTS))
def test_state_dicts_have_the_keys_of_the_reference_in_its_order_and_no_mask(name: str) -> None:
    assert list(make(name).state_dict()) == reference_keys(name)
    assert list(make(name).half().state_dict()) == reference_keys(name)


# Numbers.


@pytest.mark.parametrize(
    ("cast", "dtype", "cosine"), [("half", torch.float16, 0.9999), ("bfloat16", torch.bfloat16, 0.998)]
)
def test_a_model_cast_to_16_bits_runs_and_stays_close(
    cast: str, dtype: torch.dtype, cosine: float, model: CLIP
) -> None:
    tokens = tokenize(formula.TEXTS)
    with torch.no_grad():
        expected = [model.encode_image(images(model)), model.encode_text(tokens)]
        getattr(model, cast)()
        found = [model.encode_image(images(model)), model.encode_text(tokens)]
        logits, _ = model(images(model), tokens)
    for features, wanted in zip(found, expected, strict=True):
        assert features.dtype == dtype
        assert nn.functional.cosine_similarity(features.float(), wanted).min() > cosine
    assert logits.isfinite().all()


def test_a_model_cast_to_double_gives_the_features_of_float32(model: CLIP) -> None:
    tokens = tokenize(formula.TEXTS)
    with torch.no_grad():
        expected = [model.encode_image(images(model)), model.encode_text(tokens)]
        model.double()
        found = [model.encode_image(images(model)), model.encode_text(tokens)]
    for features, wanted in zip(found, expected, strict=True):
        assert features.dtype == torch.float64
        assert spread(features, wanted) < 1e-5


def test_build_model_gives_the_fp16_split_and_a_model_that_runs(model: CLIP) -> None:
    tokens = tokenize(formula.TEXTS)
    given = model.state_dict() | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    keys = list(given)
    built = build_model(given)
    assert list(given) == keys
    assert not built.training
    assert (built.dtype, built.text_projection.dtype) == (torch.float16, torch.float16)
    assert (built.logit_scale.dtype, built.ln_final.weight.dtype) == (torch.float32, torch.float32)
    with torch.no_grad():
        assert built.encode_image(images(model)).dtype == torch.float16
        found, wanted = built.encode_text(tokens), model.encode_text(tokens)
        assert nn.functional.cosine_similarity(found.float(), wanted).min() > 0.9999
        model.positional_embedding.zero_()
        assert torch.equal(built.encode_text(tokens), found)


def test_bytes_are_cast_and_not_scaled(model: CLIP) -> None:
    size = model.visual.input_resolution
    pixels = torch.from_numpy(np.array(formula.picture(0, size, size))).permute(2, 0, 1)[None]
    assert pixels.dtype == torch.uint8
    assert torch.equal(model.encode_image(pixels), model.encode_image(pixels.float()))


def test_an_empty_batch_gives_no_rows_of_features(model: CLIP) -> None:
    size = model.visual.input_resolution
    assert model.encode_image(torch.zeros(0, 3, size, size)).shape == (0, 32)
    assert model.encode_text(tokenize([])).shape == (0, 32)
    assert model(torch.zeros(0, 3, size, size), tokenize("a"))[0].shape == (0, 1)


def test_logits_are_cosines_times_the_temperature_and_the_second_are_the_transpose(model: CLIP) -> None:
    tokens = tokenize([*formula.TEXTS, "a third"])
    with torch.no_grad():
        per_image, per_text = model(images(model), tokens)
        features = model.encode_image(images(model)).double(), model.encode_text(tokens).double()
    cosines = nn.functional.normalize(features[0]) @ nn.functional.normalize(features[1]).T
    assert per_image.shape == (2, 3)
    assert torch.equal(per_text, per_image.T)
    assert torch.allclose(per_image.double(), cosines * torch.exp(torch.tensor(4.6052)).double(), atol=1e-4)


def test_features_are_not_normalised(model: CLIP) -> None:
    norms = torch.cat([model.encode_image(images(model)), model.encode_text(tokenize(formula.TEXTS))]).norm(dim=1)
    assert ((norms - 1).abs() > 0.05).all()


@pytest.mark.parametrize("length", [20, 78])
def test_tokens_that_are_not_77_long_are_a_runtime_error(length: int, vit: CLIP) -> None:
    with pytest.raises(RuntimeError, match=f"size of tensor a \\({length}\\) must match"):
        vit.encode_text(tokenize("a", context_length=length))


def test_a_wrong_resolution_is_a_runtime_error(model: CLIP) -> None:
    size = model.visual.input_resolution + 32
    with pytest.raises(RuntimeError, match="size of tensor a"):
        model.encode_image(torch.zeros(1, 3, size, size))


# The calls.


def test_the_example_of_the_readme_of_openai_runs(saved: Path, vit: CLIP) -> None:
    device = "cpu"
    model, preprocess = clip.load(str(saved), device=device)
    image = preprocess(formula.picture(0, 90, 70)).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        logits_per_image, _ = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
        assert torch.equal(image_features, vit.encode_image(image))
        assert torch.equal(text_features, vit.encode_text(text))
    assert probs.shape == (1, 3)
    assert probs.sum() == pytest.approx(1)
    assert probs.std() > 0


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", torch.device("cpu")])
def test_a_loaded_model_is_in_eval_mode_with_gradients_and_in_fp32_on_the_cpu(device: Any, saved: Path) -> None:
    if device is None and torch.cuda.is_available():
        pytest.skip("without a device the model goes to CUDA here")
    model, preprocess = clip.load(saved, device)
    assert not model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert preprocess.transforms[0].size == model.visual.input_resolution == 32


def test_jit_warns_and_gives_the_same_eager_model(saved: Path, vit: CLIP) -> None:
    with pytest.warns(UserWarning, match="jit=True"):
        model, _ = clip.load(str(saved), device="cpu", jit=True)
    assert type(model) is CLIP
    assert torch.equal(model.encode_image(images(vit)), vit.encode_image(images(vit)))


@pytest.mark.parametrize("replace", [True, False])
def test_a_model_that_the_user_adds_is_found_through_the_users_download(
    replace: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(url: str, root: str) -> str:
        asked.append((url, root))
        return str(saved)

    monkeypatch.setattr(clip_module, "_download", download)
    if replace:
        monkeypatch.setattr(clip_module, "_MODELS", {"mine": "https://example.com/mine.pt"})
    else:
        monkeypatch.setitem(clip_module._MODELS, "mine", "https://example.com/mine.pt")
    model, _ = clip.load("mine", device="cpu", download_root="there")
    assert asked == [("https://example.com/mine.pt", "there")]
    assert model.visual.input_resolution == 32
    assert "mine" in clip.available_models()


def test_tokens_are_int32_rows_of_start_text_end_and_zeros() -> None:
    rows = clip.tokenize(["a diagram", ""])
    assert (rows.dtype, rows.shape) == (torch.int32, (2, 77))
    assert rows[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert rows[1, :3].tolist() == [49406, 49407, 0]
    assert clip.tokenize([]).shape == (0, 77)
    for texts in ("a diagram", ("a diagram",), iter(["a diagram"]), np.array(["a diagram"])):
        assert torch.equal(clip.tokenize(texts), rows[:1])


def test_a_text_that_is_too_long_is_a_runtime_error_unless_it_may_be_cut() -> None:
    fits = clip.tokenize("a " * 75)
    with pytest.raises(RuntimeError) as caught:
        clip.tokenize(iter(["short", "a " * 76]))
    assert isinstance(caught.value, TextTooLongError)
    assert "text 1 of 2: found 78 tokens, expected at most 77" in str(caught.value)
    assert torch.equal(clip.tokenize("a " * 500, truncate=True), fits)
    assert clip.tokenize("a " * 500, 8, True).tolist() == [[49406, *[320] * 6, 49407]]


@pytest.mark.parametrize("texts", [None, 7, [None], [7], b"a", [b"a"], [["a"]], torch.zeros(1)], ids=repr)
def test_what_is_no_text_is_a_type_error(texts: Any) -> None:
    with pytest.raises(TypeError) as caught:
        clip.tokenize(texts)
    assert isinstance(caught.value, InputTypeError)


def test_a_tokenizer_put_in_the_place_of_the_modules_is_the_one_that_tokenize_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reversed(_Tokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[::-1]

    monkeypatch.setattr(clip_module, "_tokenizer", Reversed())
    assert clip.tokenize("a diagram")[0, :4].tolist() == [49406, 22697, 320, 49407]
    monkeypatch.undo()
    assert clip.tokenize("a diagram")[0, :4].tolist() == [49406, 320, 22697, 49407]


def test_a_vocabulary_of_the_users_own_may_be_shorter_and_end_in_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "short.txt.gz"
    path.write_bytes(gzip.compress(b"a comment\na b\nc d</w>\n"))
    tokenizer = _Tokenizer(str(path))
    assert tokenizer.encode("ab cd") == [64, 321, 513]  # "a", "b</w>", the second merge
    assert tokenizer.encoder["<|endoftext|>"] == 516  # after 512 symbols, two merges, one of an empty line, the start


# torch.hub, and other distributions.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_the_entry_points_of_torch_hub_are_those_of_the_reference(hub: types.ModuleType) -> None:
    entries = [name for name, value in vars(hub).items() if callable(value) and not name.startswith("_")]
    assert sorted(entries) == sorted([*HUB_NAMES, "tokenize"])
    assert hub.tokenize() is clip.tokenize
    assert [name for name in hub.dependencies if importlib.util.find_spec(name) is None] == []


def test_an_entry_point_of_torch_hub_loads_its_model(
    hub: types.ModuleType, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(clip_module, "_download", lambda url, _root: asked.append(url) or str(saved))
    for name in HUB_NAMES:
        model, preprocess = getattr(hub, name)(device="cpu")
        assert model.visual.input_resolution == preprocess.transforms[0].size == 32
    assert asked == list(clip_module._MODELS.values())


class ForeignDistribution:
    version = "1.0.1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, path: str) -> Path:
        return self.folder / path


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    def install(folder: Path) -> None:
        def distribution(name: str) -> ForeignDistribution:
            if name != "openai-clip":
                raise metadata.PackageNotFoundError(name)
            return ForeignDistribution(folder)

        monkeypatch.setattr(foreign_distribution.metadata, "distribution", distribution)
        foreign_distribution.warn_of_foreign_distribution.cache_clear()

    yield install
    foreign_distribution.warn_of_foreign_distribution.cache_clear()


def test_loading_warns_once_of_another_distribution_in_the_same_folder(
    foreign: Callable[[Path], None], saved: Path
) -> None:
    foreign(Path(clip.__file__).parent.parent)
    with pytest.warns(UserWarning, match=r"openai-clip 1\.0\.1.*pip uninstall openai-clip") as caught:
        clip.load(saved, device="cpu")
    assert caught[0].filename == __file__
    clip.load(saved, device="cpu")  # a second warning would be an error here


def test_another_distribution_elsewhere_on_the_path_is_no_matter(
    foreign: Callable[[Path], None], saved: Path, tmp_path: Path
) -> None:
    foreign(tmp_path)
    clip.load(saved, device="cpu")
