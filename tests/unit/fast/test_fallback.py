"""Every change of a model, and every mode of torch, makes `encode_image` and `encode_text` eager by itself.

Each row makes a change, after which features have to be eager's to the bit, and undoes it, where that can be, after
which the fast path runs again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit import formula
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import clip
from clip.model import CLIP, LayerNorm, QuickGELU, ResidualAttentionBlock, VisionTransformer

Undo = Callable[[], object] | None
SPREAD = 2e-5  # of a row's RMS, by which the lean graph may differ from eager


@cache
def weights(name: str) -> dict[str, Tensor]:
    return formula.state_dict(formula.TINY[name])


def make(name: str = "tiny-vit", cls: type[CLIP] = CLIP) -> CLIP:
    model = cls(**vars(formula.TINY[name]))
    model.load_state_dict(weights(name))
    return model.eval()


def images(model: CLIP, count: int = 2) -> Tensor:
    side = model.visual.input_resolution
    return torch.randn(count, 3, side, side, generator=torch.manual_seed(0))


TOKENS = clip.tokenize(formula.TEXTS)


def eager(model: CLIP, call: Callable[[CLIP], Tensor]) -> Tensor:
    """What the model gives with its fast path off."""
    model.fast = False
    try:
        return call(model)
    finally:
        del model.fast


def encode(tower: str) -> Callable[[CLIP], Tensor]:
    return (lambda m: m.encode_image(images(m))) if tower == "image" else (lambda m: m.encode_text(TOKENS))


def warm(model: CLIP, tower: str) -> Tensor:
    """Return the fast path's features, which differ from eager's in the last bits, or rows below would show nothing."""
    with torch.no_grad():
        features = encode(tower)(model)
        assert model.fast_path(tower) == "fast"
        expected = eager(model, encode(tower))
        assert torch.equal(encode(tower)(model), features)  # and nothing is in anybody's hands any more
    assert not torch.equal(features, expected)
    assert (features - expected).abs().max() < SPREAD * expected.square().mean().sqrt()
    return features


# Changes that last until they are undone


def replace(owner: Callable[[CLIP], Any], name: str, value: Callable[[Any], Any]) -> Callable[[CLIP], Undo]:
    """Set an attribute to what `value` makes of it, and back."""

    def change(model: CLIP) -> Undo:
        part = owner(model)
        before = getattr(part, name)
        setattr(part, name, value(before))
        return lambda: setattr(part, name, before)

    return change


def patch_instance(owner: Callable[[CLIP], Any], name: str) -> Callable[[CLIP], Undo]:
    """Put a method on an instance, and take it off."""

    def change(model: CLIP) -> Undo:
        part = owner(model)
        method = getattr(part, name)
        setattr(part, name, lambda *a, **k: method(*a, **k) * 2)
        return lambda: delattr(part, name)

    return change


def patch(owner: Any, name: str) -> Callable[[CLIP], Undo]:
    """Put a function in the place of a class's or a module's."""

    def change(_model: CLIP) -> Undo:
        function = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: function(*a, **k))
        return lambda: setattr(owner, name, function)

    return change


def give(owner: type, name: str, value: object) -> Callable[[CLIP], Undo]:
    """Give a class an attribute that it does not have itself, and take it away."""

    def change(_model: CLIP) -> Undo:
        setattr(owner, name, value)
        return lambda: delattr(owner, name)

    return change


def hook(owner: Callable[[CLIP], nn.Module], method: str, function: Any) -> Callable[[CLIP], Undo]:
    return lambda model: getattr(owner(model), method)(function).remove


def in_place(tensor: Callable[[CLIP], Tensor], write: Callable[[Tensor], Any]) -> Callable[[CLIP], Undo]:
    """Write to a tensor, in whatever way, and write its values back as plainly as can be."""

    def change(model: CLIP) -> Undo:
        before = tensor(model).detach().clone()
        with torch.no_grad():
            write(tensor(model))
        assert not torch.equal(tensor(model), before)

        def undo() -> None:
            tensor(model).data.copy_(before)

        return undo

    return change


def write_by_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy().reshape(-1)[0] += 1


def swap_rows(tensor: Tensor) -> None:
    """Change no sum of the values."""
    tensor.data[[0, 1]] = tensor.data[[1, 0]]


def block(model: CLIP) -> Any:
    return model.visual.transformer.resblocks[0]


def text_block(model: CLIP) -> Any:
    return model.transformer.resblocks[0]


def visual(model: CLIP) -> Any:
    return model.visual


def unnoted(model: CLIP) -> Any:
    return vars(model)["_modules"]["visual"]


def proj(model: CLIP) -> Tensor:
    return model.visual.proj


def average_silently(model: CLIP) -> Undo:
    """A moving average by `.data`, as of MoCo."""
    other = make()
    for parameter, theirs in zip(model.visual.parameters(), other.visual.parameters(), strict=True):
        parameter.data.mul_(0.9).add_(theirs.data + 1, alpha=0.1)
    return None


def step_of_optimizer(model: CLIP) -> Undo:
    with torch.enable_grad():
        model.encode_image(images(model)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    return None


def load_other_weights(model: CLIP) -> Undo:
    model.load_state_dict({key: value * 1.5 for key, value in weights("tiny-vit").items()})
    return lambda: model.load_state_dict(weights("tiny-vit"))


def retype(dtype: torch.dtype) -> Callable[[CLIP], Undo]:
    def change(model: CLIP) -> Undo:
        model.to(dtype)
        return lambda: (model.float(), model.load_state_dict(weights("tiny-vit")))

    return change


def parametrise(model: CLIP) -> Undo:
    nn.utils.parametrizations.weight_norm(block(model).mlp.c_fc)
    return None  # removing it gives the weight in another rounding


def add_module(model: CLIP) -> Undo:
    model.visual.adapter = nn.Linear(2, 2)
    return lambda: delattr(model.visual, "adapter")


def assign_data(model: CLIP) -> Undo:
    before = model.visual.proj.data
    model.visual.proj.data = before * 2
    return lambda: setattr(model.visual.proj, "data", before)


def state_dict_entry(model: CLIP) -> Undo:
    model.state_dict()["visual.proj"].mul_(2)
    return lambda: model.state_dict()["visual.proj"].mul_(0.5)


def cut_blocks(model: CLIP) -> Undo:
    tower, blocks = model.visual.transformer, model.visual.transformer.resblocks
    tower.resblocks = blocks[:-1]
    return lambda: setattr(tower, "resblocks", blocks)


class OtherLayerNorm(LayerNorm):
    """Of the same parameters."""


def assign_unnoted(model: CLIP) -> Undo:
    unnoted(model).proj.data = torch.ones(64, 32)  # and nobody keeps what it was
    return None


CHANGES: dict[str, tuple[Callable[[CLIP], Undo], str]] = {
    "training mode": (lambda m: m.train() and m.eval, "image"),
    "training mode of the tower": (lambda m: m.visual.train() and m.eval, "image"),
    "a forward hook on a block": (hook(block, "register_forward_hook", lambda _m, _i, x: x * 2), "image"),
    "a forward hook on the tower": (hook(visual, "register_forward_hook", lambda _m, _i, x: x * 2), "image"),
    "a forward hook on a leaf": (hook(lambda m: block(m).mlp.c_fc, "register_forward_hook", print), "image"),
    "a pre-hook": (hook(block, "register_forward_pre_hook", lambda _m, x: (x[0] * 2,)), "image"),
    "a backward hook": (hook(block, "register_full_backward_hook", lambda *_: None), "image"),
    "a hook on a text block": (hook(text_block, "register_forward_hook", lambda _m, _i, x: x * 2), "text"),
    "a module of another class": (replace(lambda m: block(m).mlp, "gelu", lambda _: nn.GELU()), "image"),
    "a module wrapped": (replace(lambda m: block(m).mlp, "c_fc", nn.Sequential), "image"),
    "a subclass of a module": (replace(block, "ln_1", lambda _: OtherLayerNorm(64)), "image"),
    "another conv1": (replace(visual, "conv1", lambda _: nn.Conv2d(3, 64, 8, 8, bias=False)), "image"),
    "a bias for conv1": (replace(visual, "conv1", lambda _: nn.Conv2d(3, 64, 8, 8)), "image"),
    "no projection": (replace(visual, "proj", lambda _: None), "image"),
    "no ln_post": (replace(visual, "ln_post", lambda _: nn.Identity()), "image"),
    "the tower wrapped": (replace(lambda m: m, "visual", lambda v: Wrapped(v)), "image"),
    "blocks cut": (cut_blocks, "image"),
    "a module added": (add_module, "image"),
    "a parametrisation": (parametrise, "image"),
    "a block's method on the instance": (patch_instance(block, "attention"), "image"),
    "forward on the instance": (patch_instance(lambda m: m.visual.ln_post, "forward"), "image"),
    "the tower's forward on the instance": (patch_instance(visual, "forward"), "image"),
    "a text block's method on the instance": (patch_instance(text_block, "attention"), "text"),
    "LayerNorm.forward": (patch(LayerNorm, "forward"), "image"),
    "QuickGELU.forward": (patch(QuickGELU, "forward"), "image"),
    "ResidualAttentionBlock.attention": (patch(ResidualAttentionBlock, "attention"), "image"),
    "VisionTransformer.forward": (patch(VisionTransformer, "forward"), "image"),
    "nn.Linear.forward": (patch(nn.Linear, "forward"), "image"),
    "nn.MultiheadAttention.forward": (patch(nn.MultiheadAttention, "forward"), "text"),
    "nn.Module.__call__": (patch(nn.Module, "__call__"), "image"),
    "nn.Module.__getattribute__": (
        give(nn.Module, "__getattribute__", lambda m, k: object.__getattribute__(m, k)),
        "image",
    ),
    "a weight hidden by its class": (give(nn.Linear, "bias", property(lambda m: m._parameters["bias"] * 2)), "image"),
    "F.layer_norm": (patch(F, "layer_norm"), "image"),
    "F.multi_head_attention_forward": (patch(F, "multi_head_attention_forward"), "image"),
    "F.linear": (patch(F, "linear"), "image"),
    "in place": (in_place(proj, lambda p: p.mul_(2)), "image"),
    "in place, one bias": (in_place(lambda m: block(m).mlp.c_proj.bias, lambda p: p[:1].add_(1)), "image"),
    "in place, by a view": (in_place(proj, lambda p: p.view(-1)[3:4].add_(1)), "image"),
    "in place, detached": (in_place(proj, lambda p: p.detach()[0].zero_()), "image"),
    "in place, by foreach": (in_place(proj, lambda p: torch._foreach_mul_([p], 2.0)), "image"),
    "an entry of the state dict": (state_dict_entry, "image"),
    "an optimizer's step": (step_of_optimizer, "image"),
    "load_state_dict": (load_other_weights, "image"),
    "a parameter assigned": (replace(visual, "proj", lambda p: nn.Parameter(p * 2)), "image"),
    "data assigned": (assign_data, "image"),
    "half()": (retype(torch.float16), "image"),
    "bfloat16()": (retype(torch.bfloat16), "image"),
    "double()": (retype(torch.float64), "text"),
    "silently, .data.mul_": (in_place(proj, lambda p: p.data.mul_(2)), "image"),
    "silently, one value": (in_place(proj, lambda p: p.data[:1, :1].add_(1e-3)), "image"),
    "silently, rows swapped": (in_place(proj, swap_rows), "image"),
    "silently, a bias": (in_place(lambda m: block(m).ln_2.bias, lambda p: p.data[3:4].add_(1)), "image"),
    "silently, a buried weight": (in_place(lambda m: block(m).attn.in_proj_weight, lambda p: p.data.neg_()), "image"),
    "silently, a moving average": (average_silently, "image"),
    "silently, by numpy": (in_place(proj, write_by_numpy), "image"),
    "silently, by storage": (in_place(proj, lambda p: p.untyped_storage().fill_(1)), "image"),
    "silently, by DLPack": (in_place(proj, lambda p: torch.from_dlpack(p.detach()).data.zero_()), "image"),
    "silently, tokens": (in_place(lambda m: m.token_embedding.weight, lambda p: p.data[320].zero_()), "text"),
    "silently, text positions": (in_place(lambda m: m.positional_embedding, lambda p: p.data[1].zero_()), "text"),
    "silently, text projection": (in_place(lambda m: m.text_projection, lambda p: p.data.mul_(2)), "text"),
    "silently, the mask": (in_place(lambda m: text_block(m).attn_mask, lambda p: p.data[3].fill_(0)), "text"),
    # By the instance's __dict__, which is not noted.
    "past the notes, in place": (in_place(lambda m: unnoted(m).proj, lambda p: p.mul_(2)), "image"),
    "past the notes, data assigned": (assign_unnoted, "image"),
    "past the notes, a class": (replace(lambda m: unnoted(m).ln_post, "__class__", lambda _: OtherLayerNorm), "image"),
    "past the notes, a hook": (hook(lambda m: unnoted(m), "register_forward_hook", lambda _m, _i, x: x * 2), "image"),
    "eps": (replace(lambda m: block(m).ln_1, "eps", lambda _: 0.1), "image"),
    "num_heads": (replace(lambda m: block(m).attn, "num_heads", lambda _: 2), "image"),
    "dropout": (replace(lambda m: block(m).attn, "dropout", lambda _: 0.5), "image"),
    "the stride of conv1": (replace(lambda m: m.visual.conv1, "padding_mode", lambda _: "circular"), "image"),
    "a mask lifted": (replace(text_block, "attn_mask", lambda _: None), "text"),
    "another mask": (replace(text_block, "attn_mask", torch.zeros_like), "text"),
    "a mask in the image tower": (replace(block, "attn_mask", lambda _: torch.eye(17)), "image"),
    "model.fast": (replace(lambda m: m, "fast", lambda _: False), "image"),
}


class Wrapped(nn.Module):
    """A tower that gives more than it did."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.conv1, self.input_resolution = tower, tower.conv1, tower.input_resolution

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x) * 2


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_makes_the_call_eager_and_undoing_it_makes_it_fast_again(what: str) -> None:
    change, tower = CHANGES[what]
    model = make()
    before, call = warm(model, tower), encode(tower)
    undo = change(model)
    try:
        with torch.no_grad():
            assert model.fast_path(tower).startswith("eager: ")
            changed = call(model)
            assert torch.equal(changed, eager(model, call))
    finally:
        undone = undo is not None and [undo()]
    if undone:
        with torch.no_grad():
            assert model.fast_path(tower).startswith("fast")
            assert torch.equal(call(model), before)


@torch.no_grad()
@pytest.mark.parametrize("before_loading", [True, False])
def test_a_method_that_other_libraries_give_all_modules_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, before_loading: bool
) -> None:
    if before_loading:  # as transformers does with `smart_apply`
        monkeypatch.setattr(nn.Module, "own_apply", lambda m: m, raising=False)
    model = make()
    features = warm(model, "image")
    monkeypatch.setattr(nn.Module, "own_apply", lambda m: m.children(), raising=False)
    assert model.fast_path() == "fast"
    assert torch.equal(encode("image")(model), features)
    assert model.fast_path() == "fast"


# Circumstances of a call


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda _m, _i, x: x)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def switched_off(patch: pytest.MonkeyPatch) -> Iterator[None]:
    with patch.context() as inside:
        inside.setenv("CLIP_FAST", "0")
        yield


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients are wanted": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
    "a hook on all modules": global_hook,
    "a dispatch mode": lambda: FlopCounterMode(display=False),
    "a default device": lambda: torch.device("cpu"),
    "CLIP_FAST=0": lambda: switched_off(pytest.MonkeyPatch()),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_torch_makes_a_call_eager_and_the_next_one_is_fast_again(mode: str) -> None:
    model = make()
    before = warm(model, "image")
    with torch.no_grad(), MODES[mode]():
        assert model.fast_path().startswith("eager: ")
        assert torch.equal(model.encode_image(images(model)), eager(model, encode("image")))
    with torch.no_grad():
        assert torch.equal(model.encode_image(images(model)), before)


def traced(model: CLIP, x: Tensor) -> Tensor:
    return torch.jit.trace(Call(model), x)(x)


def exported(model: CLIP, x: Tensor) -> Tensor:
    return torch.export.export(Call(model), (x,)).module()(x)


def compiled(model: CLIP, x: Tensor) -> Tensor:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph.code)
        return graph.forward

    features = torch.compile(model.encode_image, backend=backend, fullgraph=True)(x)
    assert ["layer_norm" in code for code in graphs] == [True]
    return features


class Call(nn.Module):
    """`encode_image` as a forward."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode_image(x)


TRANSFORMS: dict[str, Callable[[CLIP, Tensor], Tensor]] = {
    "torch.jit.trace": traced,
    "torch.export": exported,
    "torch.compile": lambda m, x: compiled(m, x),
    "vmap": lambda m, x: torch.func.vmap(lambda one: m.encode_image(one[None])[0])(x),
    "functional_call": lambda m, x: torch.func.functional_call(
        Call(m), {f"model.{key}": value for key, value in m.state_dict().items()}, x
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_looks_at_the_operations_sees_eagers(name: str) -> None:
    model = make()
    before = warm(model, "image")
    x = images(model)
    with torch.no_grad():
        expected = eager(model, encode("image"))
        assert torch.allclose(TRANSFORMS[name](model, x), expected, rtol=1e-5, atol=1e-6)
        graph_nodes = torch.jit.trace(Call(model), x).inlined_graph if name == "torch.jit.trace" else None
        assert graph_nodes is None or "layer_norm" in str(graph_nodes)
        assert torch.equal(model.encode_image(x), before)


def test_gradients_are_eagers_where_the_input_alone_wants_them() -> None:
    model = make().requires_grad_(False)
    warm(model, "image")
    x = images(model).requires_grad_()
    model.encode_image(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(model.encode_image(x), eager(model, lambda m: m.encode_image(x)))


def test_a_frozen_model_is_fast_without_no_grad() -> None:
    model = make().requires_grad_(False)
    before = warm(model, "image")
    assert model.fast_path() == "fast"
    assert torch.equal(model.encode_image(images(model)), before)
    model.visual.proj.requires_grad_()
    assert model.encode_image(images(model)).requires_grad


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (2, 1, 32, 32), (3, 32, 32), (2, 3, 32, 16)])
def test_images_of_another_shape_meet_eagers_error(shape: tuple[int, ...]) -> None:
    model = make()
    warm(model, "image")
    x = torch.zeros(shape)
    with torch.no_grad():
        with pytest.raises(RuntimeError) as expected:
            eager(model, lambda m: m.encode_image(x))
        with pytest.raises(RuntimeError) as found:
            model.encode_image(x)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "tokens",
    [TOKENS[:, :20], TOKENS.float(), TOKENS + 50_000, TOKENS - 1, TOKENS[0], "text"],
    ids=["short", "floats", "unknown ids", "negative ids", "one row", "text"],
)
def test_tokens_that_do_not_fit_meet_eagers_error(tokens: Any) -> None:
    model = make()
    warm(model, "text")
    with torch.no_grad():
        with pytest.raises((RuntimeError, TypeError, IndexError, AttributeError)) as expected:
            eager(model, lambda m: m.encode_text(tokens))
        with pytest.raises(expected.type) as found:
            model.encode_text(tokens)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_images_of_any_dtype_are_cast_and_not_scaled(dtype: torch.dtype) -> None:
    model = make()
    warm(model, "image")
    x = (images(model) * 3).to(dtype)
    with torch.no_grad():
        found, expected = model.encode_image(x), eager(model, lambda m: m.encode_image(x))
        assert model.fast_path() == "fast"
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() < SPREAD * expected.square().mean().sqrt()


def test_features_are_plain_tensors_of_their_own() -> None:
    model = make()
    warm(model, "image")
    with torch.no_grad():
        first, second = model.encode_image(images(model)), model.encode_image(images(model))
        first /= first.norm(dim=-1, keepdim=True)
        assert torch.equal(second, model.encode_image(images(model)))
        assert not first.requires_grad
        assert not first.is_inference()
        assert model.encode_image(images(model)[:0]).shape == (0, 32)
    nn.Linear(32, 2)(first).sum().backward()  # as a linear probe does
    with torch.inference_mode():
        assert model.encode_image(images(model)).is_inference()


def test_forward_gives_logits_of_the_fast_features() -> None:
    model = make("tiny-rn")
    with torch.no_grad():
        logits, transposed = model(images(model), TOKENS)
        expected, _ = eager(model, lambda m: m(images(m), TOKENS))
        assert (model.fast_path("image"), model.fast_path("text")) == ("fast", "fast")
    assert torch.equal(logits.T, transposed)
    assert (logits - expected).abs().max() < 1e-3


def test_a_subclass_that_overrides_the_tower_is_eager_and_one_that_overrides_nothing_is_fast() -> None:
    class Louder(VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Mine(CLIP):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.visual = Louder(32, 8, 64, 2, 1, 32)

    class Named(CLIP):
        name = "mine"

        def encode_image(self, image: Tensor) -> Tensor:
            return super().encode_image(image) + 1

    with torch.no_grad():
        mine, named = make(cls=Mine), make(cls=Named)
        assert torch.equal(mine.encode_image(images(mine)), eager(mine, encode("image")))
        assert "was replaced" in mine.fast_path()
        assert (named.encode_image(images(named)) - warm(make(), "image")).mean() == pytest.approx(1, abs=1e-5)
        assert named.fast_path() == "fast"


# ResNets


@pytest.mark.parametrize(
    "change",
    [
        in_place(lambda m: m.visual.bn1.running_mean, lambda p: p.add_(1)),
        in_place(lambda m: m.visual.layer1[0].bn2.running_var, lambda p: p.data.mul_(2)),
        replace(lambda m: m.visual.bn1, "eps", lambda _: 0.1),
        replace(lambda m: m.visual.avgpool, "kernel_size", lambda _: 1),
        replace(lambda m: m.visual.attnpool, "num_heads", lambda _: 4),
        replace(visual, "relu1", lambda _: nn.Identity()),
        hook(lambda m: m.visual.layer4, "register_forward_hook", lambda _m, _i, x: x * 2),
    ],
    ids=["running mean", "running variance, silently", "eps", "pool", "heads", "relu", "hook"],
)
def test_changes_of_a_resnet_are_noticed_too(change: Callable[[CLIP], Undo]) -> None:
    model = make("tiny-rn")
    with torch.no_grad(), ExitStack() as stack:
        before = model.encode_image(images(model))
        undo = change(model)
        stack.callback(undo or nullcontext)
        try:
            found: Any = model.encode_image(images(model))
        except RuntimeError as exc:
            found = str(exc)
        try:
            assert torch.equal(found, eager(model, encode("image")))
        except RuntimeError as exc:
            assert str(exc) == found
        stack.close()
        assert torch.equal(model.encode_image(images(model)), before)
