"""The fast path as a program meets it: first call, refolding, switches, threads, forks, copies; random sequences."""

import copy
import io
import multiprocessing
import os
import pickle
import threading
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kit import formula
from kit.encoded import Encoded
from torch import Tensor, nn
from torch.utils.data import DataLoader

import clip
from clip.errors import DeviceError, InputError
from clip.fast import path
from clip.fast.digest import ROW, digest, equal
from clip.model import CLIP

ARCHITECTURE = formula.TINY["tiny-vit"]
WEIGHTS = formula.state_dict(ARCHITECTURE)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))
TOKENS = clip.tokenize(formula.TEXTS)
SPREAD = 2e-5  # of a row's RMS


def make() -> CLIP:
    model = CLIP(**vars(ARCHITECTURE))
    model.load_state_dict(WEIGHTS)
    return model.eval()


@torch.no_grad()
def eager(model: CLIP) -> Tensor:
    model.fast = False
    try:
        return model.encode_image(IMAGES)
    finally:
        del model.fast


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() < SPREAD * expected.square().mean().sqrt()


@torch.no_grad()
def test_calls_are_one_path_from_the_first_on() -> None:
    model = make()
    assert model.fast_path() == "fast: the next call folds and compiles it"
    features = [model.encode_image(IMAGES) for _ in range(4)]
    assert all(torch.equal(one, features[0]) for one in features)
    assert model.fast_path() == "fast"
    assert_near(features[0], eager(model))


@torch.no_grad()
def test_changed_weights_are_folded_again_once_they_stay() -> None:
    model = make()
    model.encode_image(IMAGES)
    model.visual.proj.mul_(2)
    expected = eager(model)
    assert torch.equal(model.encode_image(IMAGES), expected)
    refolded = model.encode_image(IMAGES)
    assert not torch.equal(refolded, expected)
    assert_near(refolded, expected)
    assert model.fast_path() == "fast"
    model.visual.proj.data.mul_(2)  # and silently
    assert torch.equal(model.encode_image(IMAGES), eager(model))
    assert_near(model.encode_image(IMAGES), eager(model))
    assert model.fast_path() == "fast"


@torch.no_grad()
def test_weights_that_change_at_each_call_stay_eager_and_are_not_folded() -> None:
    model = make()
    model.encode_image(IMAGES)
    for _ in range(4):
        model.visual.proj.data.mul_(1.1)
        assert torch.equal(model.encode_image(IMAGES), eager(model))


@torch.no_grad()
def test_asking_for_the_path_is_no_call_and_hides_no_change() -> None:
    model = make()
    model.encode_image(IMAGES)
    model.visual.proj.data.mul_(2)
    for _ in range(3):
        assert "the weights have changed" in model.fast_path()
    assert torch.equal(model.encode_image(IMAGES), eager(model))


HELD: dict[str, tuple[Any, Any]] = {
    "a parameter": (lambda m: m.visual.class_embedding, lambda p: p.data.add_(1)),
    "its data": (lambda m: m.visual.proj.data, lambda data: data.mul_(2)),
    "its memory as an array": (lambda m: m.visual.proj.detach().numpy(), lambda array: array.__setitem__((0, 0), 3)),
    "a module": (lambda m: m.visual.ln_post, lambda ln: ln.weight.data.mul_(2)),
    "the tower": (lambda m: m.visual, lambda tower: setattr(tower.ln_post, "eps", 0.1)),
    "an optimizer": (lambda m: torch.optim.SGD(m.parameters()), lambda o: o.param_groups[0]["params"][3].data.mul_(2)),
}


@torch.no_grad()
@pytest.mark.parametrize("what", HELD)
def test_what_is_held_from_before_may_write_at_any_time(what: str) -> None:
    model = make()
    take, write = HELD[what]
    held = take(model)
    before = [model.encode_image(IMAGES) for _ in range(2)]
    assert torch.equal(*before)
    write(held)
    features = model.encode_image(IMAGES)
    assert not torch.equal(features, before[0])
    assert torch.equal(features, eager(model))


@torch.no_grad()
def test_a_weight_of_a_tower_that_is_not_used_does_not_matter() -> None:
    model = make()
    before = model.encode_image(IMAGES)
    model.text_projection.data.mul_(2)
    model.logit_scale.data.add_(1)
    assert model.fast_path() == "fast"
    assert torch.equal(model.encode_image(IMAGES), before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_are_never_folded(dtype: torch.dtype) -> None:
    model = make()
    model.encode_image(IMAGES)
    model.to(dtype)
    for _ in range(3):
        assert torch.equal(model.encode_image(IMAGES), eager(model))
        assert model.fast_path() == f"eager: its weights are {dtype}"


@torch.no_grad()
def test_a_fork_decides_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy of the lock may be held by a thread that it lacks."""
    model = make()
    model.encode_image(IMAGES)
    before = vars(model)["_fast_paths"]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert model.fast_path().startswith("eager: this process was forked")
    monkeypatch.setattr(path, "is_forked", lambda: False)
    model.encode_image(IMAGES)
    assert vars(model)["_fast_paths"] is not before


# Switches


def test_load_takes_the_switch_and_a_precision() -> None:
    model, preprocess = clip.load("sketch", device="cpu", fast=False)
    batch = preprocess(formula.picture(0, 90, 70))[None]
    with torch.no_grad():
        expected = model.encode_image(batch)
        assert model.fast_path() == "eager: model.fast is False"
        model.fast = True
        assert not torch.equal(model.encode_image(batch), expected)
    with pytest.raises(InputError, match="one of"):
        clip.load("sketch", device="cpu", precision="fp4")  # type: ignore[arg-type]
    with pytest.raises((InputError, DeviceError)):
        clip.load("sketch", device="cpu", precision="int8")


@torch.no_grad()
def test_a_precision_changes_the_graph_and_not_the_dtype_of_features() -> None:
    model = make()
    exact = model.encode_image(IMAGES)
    if "bf16" not in clip.engine.devices.usable_precisions(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    model.precision = "bf16"
    coarse = model.encode_image(IMAGES)
    assert coarse.dtype == torch.float32
    assert 1e-5 < (coarse - exact).abs().max() / exact.square().mean().sqrt() < 0.1
    model.precision = "reference"
    assert torch.equal(model.encode_image(IMAGES), exact)


# Copies, threads, processes


@torch.no_grad()
def test_copies_and_pickles_are_plain_models_without_the_graph() -> None:
    model, buffer = make(), io.BytesIO()
    size = len(pickle.dumps(model))
    features = model.encode_image(IMAGES)
    assert len(pickle.dumps(model)) == size
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert "_fast_paths" not in vars(other)
        assert torch.equal(other.encode_image(IMAGES), features)
    other = copy.deepcopy(model)
    other.visual.proj.data.mul_(2)
    assert torch.equal(other.encode_image(IMAGES), other.encode_image(IMAGES))
    assert torch.equal(model.encode_image(IMAGES), features)
    assert list(model.state_dict()) == list(WEIGHTS)


@torch.no_grad()
def test_a_replica_does_not_use_the_graph_of_the_original() -> None:
    model = make()
    model.encode_image(IMAGES)
    replica = model._replicate_for_data_parallel()
    replica._modules["visual"] = copy.deepcopy(model.visual)
    replica._modules["visual"].proj.mul_(2)
    assert_near(replica.encode_image(IMAGES), 2 * eager(model))
    assert nn.DataParallel(model)(IMAGES, TOKENS)[0].shape == (3, 2)


def test_eight_threads_call_one_model_while_one_changes_it() -> None:
    model = make()
    expected = [eager(model), 2 * eager(model)]
    found: list[Tensor] = []
    start = threading.Barrier(9)

    def call() -> None:
        start.wait()
        with torch.no_grad():
            found.extend(model.encode_image(IMAGES) for _ in range(10))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert len(found) == 80
    for features in found:
        assert_near(features, expected[0])
    with torch.no_grad():
        model.visual.proj.mul_(2)
        assert torch.equal(model.encode_image(IMAGES), eager(model))
        assert_near(model.encode_image(IMAGES), expected[1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_workers_of_a_data_loader_compute_the_right_features(method: str) -> None:
    model = make()
    with torch.no_grad():
        expected = model.encode_image(IMAGES)
    context: Any = multiprocessing.get_context(method)
    [(features, paths)] = DataLoader(
        Encoded(model, IMAGES), batch_size=3, num_workers=1, multiprocessing_context=context
    )
    assert_near(features, expected)
    assert all(path.startswith("eager: this process was forked" if method == "fork" else "fast") for path in paths)


# The digest


@pytest.mark.parametrize("count", [1, 7, ROW, 2 * ROW - 1, 2 * ROW, 5 * ROW + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_digest_shows_any_value_that_changes_and_any_two_that_swap(count: int, dtype: torch.dtype) -> None:
    values = torch.randn(count, generator=torch.manual_seed(0)).mul(1000).to(dtype)
    before = digest([values])
    assert equal(before, digest([values.clone()]))
    for place in {0, count // 2, count - 1}:
        changed = values.clone()
        changed[place] += 1
        assert not equal(before, digest([changed]))
    if count > 1 and values[0] != values[-1]:
        swapped = values.clone()
        swapped[[0, -1]] = swapped[[-1, 0]]
        assert not equal(before, digest([swapped]))


def test_a_digest_takes_tensors_of_any_layout() -> None:
    values = torch.randn(90, 300, generator=torch.manual_seed(0))
    assert equal(digest([values.T]), digest([values.T.contiguous()]))
    odd = torch.zeros(90 * 300 + 1)
    odd[1:] = values.flatten()
    assert not equal(digest([odd[1:]]), digest([odd[1:] * 2]))


# Random sequences


class Calls(RuleBasedStateMachine):
    """Calls, changes and undoings in any order give what a model that is always eager gives, to rounding."""

    @initialize()
    def begin(self) -> None:
        self.model, self.kept = make(), []
        self.held: list[Any] = []

    @rule()
    def call(self) -> None:
        with torch.no_grad():
            assert_near(self.model.encode_image(IMAGES), eager(self.model))

    @rule()
    def call_with_gradients(self) -> None:
        assert self.model.encode_image(IMAGES).requires_grad

    @rule()
    def ask(self) -> None:
        assert self.model.fast_path().partition(":")[0] in ("fast", "eager")

    @rule(name=st.sampled_from(["proj", "class_embedding", "positional_embedding"]), way=st.integers(0, 4))
    def change(self, name: str, way: int) -> None:
        parameter = getattr(self.model.visual, name)
        before = parameter.detach().clone()
        self.kept.append((name, before))
        with torch.no_grad():
            if way == 0:
                parameter.mul_(1.5)
            elif way == 1:
                parameter.data.mul_(1.5)
            elif way == 2:
                parameter.data = parameter.data * 1.5
            elif way == 3:
                parameter.detach().numpy().reshape(-1)[0] += 1
            else:
                setattr(self.model.visual, name, nn.Parameter(before * 1.5))

    @rule()
    def undo(self) -> None:
        if self.kept:
            name, before = self.kept.pop()
            getattr(self.model.visual, name).data.copy_(before)

    @rule()
    def hold(self) -> None:
        self.held.append(self.model.visual.ln_post)

    @rule()
    def write_through_what_is_held(self) -> None:
        if self.held:
            self.held[-1].weight.data.mul_(1.1)

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @rule()
    def hook(self) -> None:
        block = self.model.visual.transformer.resblocks[1]
        if block._forward_hooks:
            block._forward_hooks.clear()
        else:
            block.register_forward_hook(lambda _m, _i, x: x * 2)

    @rule()
    def retype(self) -> None:
        self.model.double().float()

    @rule()
    def train_or_not(self) -> None:
        self.model.visual.train(not self.model.visual.training)

    @invariant()
    def the_path_is_told_in_one_line(self) -> None:
        if hasattr(self, "model"):
            assert "\n" not in self.model.fast_path("text")


Calls.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestCalls = Calls.TestCase
