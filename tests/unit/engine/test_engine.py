"""The engine: back ends that agree, precisions read back, batches of any size from any thread, memory that runs out."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import checkpoints, formula
from kit.programs import command

import clip
from clip.engine import backend_cuda, backend_openvino, backend_torch, devices
from clip.engine.backend import Backend
from clip.engine.backend_cuda import CudaBackend, full_wave_batch, padded_size, round_blocks_to_fp8
from clip.engine.backend_torch import Fp8Linear, TorchOps, cpu_batch_size, to_fp8
from clip.engine.devices import make_backend, usable_precisions
from clip.engine.engine import Engine
from clip.engine.fold import LeanViT, Linear, fold_image_tower
from clip.errors import DeviceError, InputError
from clip.images.preprocess import normalize_pixels
from clip.model import QuickGELU, load_weights
from clip.network.records import Architecture, PreprocessSettings

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of a row's RMS; the order of summation differs between batches
openvino_here = pytest.mark.skipif(not backend_openvino.usable_precisions(), reason="OpenVINO is for x86-64")


def make_engine(name: str = "tiny-vit", precision: Any = "reference", **options: Any) -> Engine:
    architecture = formula.TINY[name]
    state_dict = formula.state_dict(architecture)
    return Engine(
        state_dict,
        architecture,
        PreprocessSettings(architecture.image_resolution),
        make_backend(CPU, precision, threads=1),
        **options,
    )


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float(((found - expected).abs().amax(dim=1) / expected.square().mean(dim=1).sqrt()).max())


@pytest.fixture(scope="module", params=["tiny-vit", "tiny-rn"])
def shared(request: pytest.FixtureRequest) -> tuple[Engine, torch.Tensor, torch.Tensor]:
    """An engine, twelve images, and their features one by one."""
    made = make_engine(request.param, batch_size=5)
    images = pictures(12, made.settings.resolution_px)
    return made, images, torch.cat([made.encode_pixels(image[None]) for image in images])


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), count=st.integers(1, 12), size=st.integers(1, 13), threads=st.integers(1, 4))
def test_a_picture_has_one_vector_in_whatever_batch_order_and_thread(
    shared: tuple[Engine, torch.Tensor, torch.Tensor], order: list[int], count: int, size: int, threads: int
) -> None:
    made, images, expected = shared
    made.batch_size = size
    chosen = list(order[:count])
    with ThreadPoolExecutor(threads) as pool:
        for features in pool.map(made.encode_pixels, [images[chosen]] * threads):
            assert error(features, expected[chosen]) < TOLERANCE


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 75), min_size=1, max_size=12), size=st.integers(1, 5))
def test_a_text_has_one_vector_beside_whatever_others(lengths: list[int], size: int) -> None:
    made = TEXTS.setdefault("engine", make_engine())
    made._text_batch = size
    tokens = clip.tokenize(["a " * length for length in lengths])
    alone = torch.cat([made.encode_text(row[None]) for row in tokens])
    assert error(made.encode_text(tokens), alone) < TOLERANCE


TEXTS: dict[str, Engine] = {}


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_bytes_and_normalised_floats_give_the_same(name: str) -> None:
    made = make_engine(name)
    images = pictures(3, made.settings.resolution_px)
    floats = normalize_pixels(images, made.settings)
    expected = made.encode_pixels(images)
    assert error(made.encode_image(floats), expected) < TOLERANCE
    assert error(made.encode_image(floats.double()), expected) < TOLERANCE
    assert error(made.encode_image(images.permute(0, 3, 1, 2)), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_openvino_is_missing_torch_gives_the_same(
    name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "openvino_precisions", list)
    fallback = make_engine(name, precision)
    monkeypatch.undo()
    assert fallback.backend.name == f"torch {torch.__version__}"
    images, tokens = pictures(3, fallback.settings.resolution_px), clip.tokenize(formula.TEXTS)
    usual = make_engine(name)
    for found, expected in (
        (fallback.encode_pixels(images), usual.encode_pixels(images)),
        (fallback.encode_text(tokens), usual.encode_text(tokens)),
    ):
        assert found.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        if precision == "fp32":
            assert error(found, expected) < TOLERANCE
        else:
            assert torch.cosine_similarity(found.float(), expected).min() > 0.999


@openvino_here
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize("precision", sorted(backend_openvino.HINTS.keys() & backend_openvino.usable_precisions()))
def test_each_product_runs_in_the_precision_that_was_asked_for(name: str, precision: Any) -> None:
    """Not the hint alone: what the plug-in chose for each node that multiplies."""
    made = make_engine(name, precision)
    made.encode_pixels(pictures(2, made.settings.resolution_px))
    graph: Any = made._graph(torch.uint8)
    nodes = [node.get_rt_info() for node in graph.compiled.get_runtime_model().get_ops()]
    products = [node for node in nodes if node["layerType"].value in ("FullyConnected", "Convolution", "MatMul")]
    assert len(products) > 5
    wanted = backend_openvino.HINTS[precision]
    assert {node["runtimePrecision"].value for node in products} == {wanted}


@openvino_here
def test_a_precision_that_openvino_does_not_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes "f16" on x86-64, and then computes in bf16 or fp32."""
    monkeypatch.setitem(backend_openvino.HINTS, "fp32", "f16")
    made = make_engine()
    with pytest.raises(DeviceError, match=r"precision 'fp32': OpenVINO computes in .*, expected f16"):
        made.encode_pixels(pictures(1, 32))


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_this_machine_lacks_is_refused_and_those_it_has_are_named(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=rf"precision '{precision}': cpu .* \['reference', 'fp32'"):
        clip.Encoder(checkpoints.write(tmp_path, "tiny-vit"), device="cpu", precision=precision)


def test_a_word_that_is_no_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision: found 'float32', expected one of"):
        make_engine(precision="float32")


def test_the_devices_of_this_machine_are_listed() -> None:
    rows = devices.list_devices()
    assert rows[0].device == "cpu"
    assert rows[0].precisions[0] == "fp32"
    assert all(row.name and row.backend for row in rows)
    assert usable_precisions(torch.device("mps"))[0] == "fp32"


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (torch.full((1, 77), 49408), "ids from 49408 to 49408"),
        (torch.full((1, 77), -1), "ids from -1 to -1"),
        (torch.zeros(1, 78, dtype=torch.int32), r"\(1, 78\)"),
        (torch.zeros(77, dtype=torch.int32), r"\(77,\)"),
        (torch.zeros(1, 77), r"\(1, 77\) of torch.float32"),
    ],
)
def test_tokens_that_the_model_cannot_read_are_refused(tokens: torch.Tensor, found: str) -> None:
    with pytest.raises(InputError, match=rf"tokens: found {found}.*expected"):
        make_engine().encode_text(tokens)


@pytest.mark.parametrize("shape", [(1, 3, 31, 32), (3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"image: found .*expected \(B, 3, 32, 32\)"):
        make_engine().encode_image(torch.zeros(shape))


class FullMemory(Backend):
    """A back end on which batches above a size do not fit, as some library reports it."""

    name, device, precision, dtype = "test", CPU, "fp32", torch.float32

    def __init__(self, fits: int, failure: Exception) -> None:
        self.fits = fits
        self.failure = failure
        self.sizes: list[int] = []

    def batch_size(self, _architecture: Architecture) -> int:
        return 8

    def image_graph(self, *_: Any) -> Any:
        return self._run

    text_graph = image_graph

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.failure
        return pixels.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 32)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[json.exception] std::bad_alloc"),
        RuntimeError("could not create a memory object"),
    ],
    ids=lambda failure: str(failure)[:12],
)
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    architecture = formula.TINY["tiny-vit"]
    backend = FullMemory(3, failure)
    made = Engine(formula.state_dict(architecture), architecture, PreprocessSettings(32), backend)
    images = pictures(11, 32)
    features = made.encode_pixels(images)
    assert torch.allclose(features[:, 0], images.float().mean(dim=(1, 2, 3)))
    assert backend.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert made.batch_size == 2
    assert [record.message for record in caplog.records] == [
        "cpu: out of memory for a batch of 8; continuing with 4",
        "cpu: out of memory for a batch of 4; continuing with 2",
    ]


def test_what_was_done_before_memory_ran_out_is_kept_and_not_done_again() -> None:
    architecture = formula.TINY["tiny-vit"]
    backend = FullMemory(8, MemoryError())
    made = Engine(formula.state_dict(architecture), architecture, PreprocessSettings(32), backend)
    images = pictures(24, 32)

    def shrink(pixels: torch.Tensor) -> torch.Tensor:
        features = backend._run(pixels)
        backend.fits = 4  # from the second batch on
        return features

    made._graphs[torch.uint8] = shrink
    assert torch.allclose(made.encode_pixels(images)[:, 0], images.float().mean(dim=(1, 2, 3)))
    assert backend.sizes == [8, 8, 4, 4, 4, 4]


def test_graphs_made_for_the_larger_batch_go_but_only_once() -> None:
    architecture = formula.TINY["tiny-vit"]
    made = Engine(formula.state_dict(architecture), architecture, PreprocessSettings(32), FullMemory(8, MemoryError()))
    made.encode_pixels(pictures(2, 32))
    made.encode_pixels(pictures(2, 32).float())
    made._text_graph()
    made._graphs[None] = text = made.backend._run
    made._halve(torch.uint8, 8, MemoryError())
    assert (made.batch_size, made._graphs) == (4, {None: text})
    made.encode_pixels(pictures(2, 32))
    made._halve(torch.float32, 8, MemoryError())  # of a thread whose batch was on its way before
    assert (made.batch_size, set(made._graphs)) == (4, {None, torch.uint8})
    made._halve(None, 64, MemoryError())
    assert (made._text_batch, set(made._graphs)) == (32, {torch.uint8})


def test_engines_that_fold_at_once_leave_torchs_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engines = [make_engine() for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda one: one.encode_pixels(pictures(1, 32)), engines))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_single_picture_that_does_not_fit_is_an_error_and_others_come_through() -> None:
    architecture = formula.TINY["tiny-vit"]
    weights = formula.state_dict(architecture)
    made = Engine(weights, architecture, PreprocessSettings(32), FullMemory(0, MemoryError("no room")))
    with pytest.raises(DeviceError, match=r"cpu: out of memory for a batch of 1 \(no room\)\. Free some"):
        made.encode_pixels(pictures(2, 32))
    made = Engine(weights, architecture, PreprocessSettings(32), FullMemory(0, MemoryError()))
    with pytest.raises(DeviceError, match=r"cpu: out of memory for a batch of 1 \(MemoryError\)\. Free some"):
        made.encode_pixels(pictures(2, 32))
    made = Engine(weights, architecture, PreprocessSettings(32), FullMemory(0, RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match="another fault"):
        made.encode_pixels(pictures(2, 32))


def test_a_loaded_models_activation_heads_and_normalisation_are_its_own() -> None:
    architecture = replace(formula.TINY["tiny-vit"], activation="gelu", vision_heads=4, transformer_heads=2)
    model = load_weights(formula.state_dict(architecture), architecture, mixed_fp16=False)
    model.preprocess_settings = PreprocessSettings(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    encoder = clip.Encoder(model)
    images = pictures(2, 32)
    with torch.no_grad():
        expected = model.encode_image((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        texts = model.encode_text(clip.tokenize(formula.TEXTS))
    assert error(torch.from_numpy(encoder.encode_pixels(images.numpy())), expected) < TOLERANCE
    assert error(encoder.encode_text(formula.TEXTS), texts) < TOLERANCE
    assert encoder.settings == model.preprocess_settings


def test_what_clip_load_gives_carries_what_its_checkpoint_asks_of_pictures(tmp_path: Path) -> None:
    model, _ = clip.load(str(checkpoints.write(tmp_path, "tiny-vit")), device="cpu")
    assert model.preprocess_settings == PreprocessSettings(32)


def test_a_model_that_was_patched_is_refused_by_the_place_of_the_patch() -> None:
    architecture = formula.TINY["tiny-vit"]

    class Sharper(QuickGELU):
        """Not what the weights were trained with."""

    def model() -> clip.model.CLIP:
        return load_weights(formula.state_dict(architecture), architecture, mixed_fp16=False)

    patched = model()
    next(patched.visual.transformer.blocks()).mlp[1] = Sharper()
    with pytest.raises(InputError, match=r"model: visual\.transformer\.resblocks\.0\.mlp\.gelu was replaced"):
        clip.Encoder(patched)
    hooked = model()
    hooked.visual.ln_post.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"model: visual\.ln_post was hooked"):
        clip.Encoder(hooked)


def test_training_on_does_not_change_an_encoder_in_use() -> None:
    architecture = formula.TINY["tiny-vit"]
    model = load_weights(formula.state_dict(architecture), architecture, mixed_fp16=False)
    encoder = clip.Encoder(model)
    images = pictures(3, 32).numpy()
    before = encoder.encode_pixels(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert np.array_equal(encoder.encode_pixels(images), before)
    assert not np.allclose(encoder.encode_pixels(images[:1]), clip.Encoder(model).encode_pixels(images[:1]), rtol=0.1)


def test_fp8_rounds_rows_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 64, generator=draw) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    layer = Linear(
        torch.randn(32, 64, generator=draw) * torch.logspace(-3, 3, 32)[:, None], torch.randn(32, generator=draw)
    )
    half = Linear(layer.weight.bfloat16(), layer.bias.bfloat16())
    found = TorchOps(torch.bfloat16).linear(x.bfloat16(), to_fp8(layer, half)).float()
    expected = TorchOps(torch.float32).linear(x, layer)
    assert found.shape == expected.shape
    # Within a few per cent of each row's scale, however far apart the scales of rows are.
    scale = expected.square().mean(dim=1, keepdim=True).sqrt()
    assert ((found - expected) / scale).abs().mean() < 0.03


def test_fp8_is_for_the_blocks_of_large_vits() -> None:
    architecture = replace(formula.TINY["tiny-vit-wide"], vision_width=1024)
    exact = fold_image_tower(formula.state_dict(architecture), architecture, PreprocessSettings(56))
    placed = backend_torch.place(exact, torch.Tensor.bfloat16)
    assert isinstance(placed, LeanViT)
    assert isinstance(exact, LeanViT)
    large = round_blocks_to_fp8(placed, exact)
    kinds = [type(block.qkv) for block in large.stack.blocks]
    assert kinds == [Linear, Fp8Linear]
    assert {block.qkv.scale.dtype for block in large.stack.blocks[1:]} == {torch.float32}
    assert large.patches.weight.dtype == large.stack.blocks[1].qkv.bias.dtype == torch.bfloat16
    assert type(large.patches) is type(large.stack.head) is type(large.stack.last.mlp.fc) is Linear
    images = pictures(4, 56)
    with torch.inference_mode():
        found = backend_torch.image_features(large, torch.bfloat16)(images).float()
        assert torch.cosine_similarity(found, backend_torch.image_features(exact, torch.float32)(images)).min() > 0.995


@pytest.mark.parametrize(("name", "what"), [("tiny-vit", "ViT 64 wide"), ("tiny-rn", "ResNet 16 wide")])
def test_fp8_is_refused_where_it_is_no_faster_before_any_work(name: str, what: str) -> None:
    backend = CudaBackend(torch.device("cuda", 0), "fp8")
    architecture = formula.TINY[name]
    with pytest.raises(DeviceError, match=f"precision 'fp8': found a {what}, expected a ViT of at least 1024"):
        Engine({}, architecture, PreprocessSettings(32), backend)


@pytest.mark.parametrize(("rows", "width", "at_least"), [(50, 768, 0.95), (197, 768, 0.95), (257, 1024, 0.95)])
def test_a_gpus_batch_fills_its_waves(rows: int, width: int, at_least: float) -> None:
    batch = full_wave_batch(rows, width, 132)
    assert batch % 32 == 0
    assert backend_cuda.MIN_ROWS <= batch * rows <= backend_cuda.MAX_ROWS
    tiles = -(-batch * rows // 128) * -(-3 * width // 256)
    assert tiles / (-(-tiles // 132) * 132) > at_least


@pytest.mark.parametrize(
    ("name", "size"), [("RN50", 256), ("RN101", 256), ("RN50x4", 64), ("RN50x64", 32), ("ViT-B/32", 448)]
)
def test_a_gpus_batch_is_by_the_model(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Processors:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Processors)
    backend = CudaBackend(torch.device("cuda", 0), "fp16")
    assert backend.batch_size(formula.ARCHITECTURES[name]) == size


def test_small_batches_are_padded_to_few_sizes() -> None:
    assert [padded_size(count, 448) for count in (1, 2, 3, 9, 64, 65, 224)] == [1, 2, 4, 16, 64, 128, 256]
    assert [padded_size(count, 448) for count in (225, 448, 500)] == [448, 448, 500]
    assert [padded_size(count, 4) for count in (1, 2, 3, 4)] == [1, 2, 4, 4]
    assert padded_size(1, 1) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool])
def test_whole_numbers_but_bytes_are_not_taken_for_normalised_pictures(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"image: found \(1, 3, 32, 32\) of torch\..*expected .* floats or bytes"):
        make_engine().encode_image(torch.zeros(1, 3, 32, 32, dtype=dtype))


def test_a_cpus_batch_suits_the_model_and_the_threads() -> None:
    sizes = {name: cpu_batch_size(formula.ARCHITECTURES[name], 2) for name in ("ViT-B/32", "ViT-L/14@336px", "RN50")}
    assert sizes == {"ViT-B/32": 32, "ViT-L/14@336px": 8, "RN50": 8}
    assert cpu_batch_size(formula.ARCHITECTURES["ViT-L/14"], 64) == 128
    assert backend_torch.CPU_MIN_BATCH == 8


def test_nothing_phones_home(tmp_path: Path) -> None:
    """Run as on a user's machine: the converter's telemetry is silent where CI is set."""
    weights = checkpoints.write(tmp_path, "tiny-vit")
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(home)}
    audit = command("audit_encoder", weights)
    ran = subprocess.run(audit, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[0] == "[] [] []"
    assert ran.stderr == ""
    assert list(home.rglob("*")) == []
