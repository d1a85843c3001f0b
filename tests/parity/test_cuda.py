"""On a GPU: the reference's dtypes, and the lean graph's features compared with fp32 features of a CPU."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from kit import formula, windows

import clip
from clip.batch.crops import CropRing
from clip.clip import load_model
from clip.engine.backend_cuda import CudaBackend, CudaGraph
from clip.engine.devices import make_backend, usable_precisions
from clip.engine.engine import Engine
from clip.engine.pinned import pin
from clip.images.preprocess import normalize_pixels
from clip.images.transform import to_pixels
from clip.network.records import Checkpoint, PreprocessSettings

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # The compiler warns of its own choices, under the names of many modules; as errors they would end it, or the reset
    # of it after a test, and the graph would run uncompiled.
    pytest.mark.filterwarnings("default"),
]
# Weights by formula and fp32 on a CPU take minutes for ViT-L/14. Its width, patches and resolution in four layers run
# the same kernels; only fp8, whose errors add up over layers, gets all 24, and a text tower of next to nothing.
SHALLOW = replace(formula.ARCHITECTURES["ViT-L/14"], vision_layers=4, transformer_layers=2)
THIN_TEXTS = {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1}
ARCHITECTURES = formula.ARCHITECTURES | {
    "ViT-L/14 in four layers": SHALLOW,
    "ViT-L/14 of images": replace(formula.ARCHITECTURES["ViT-L/14"], **THIN_TEXTS),
}
COSINE = {"fp16": 0.9999, "bf16": 0.9995, "fp32": 0.99999, "fp8": 0.99}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


@cache
def weights_of(name: str) -> dict[str, torch.Tensor]:
    return formula.state_dict(ARCHITECTURES[name])


def engine(
    name: str,
    device: torch.device,
    precision: Any = "reference",
    batch_size: int | None = None,
    *,
    compiles: bool = False,
) -> Engine:
    """An engine whose first full batch is compiled, or none: each compilation takes 5 to 20 s of two minutes."""
    architecture = ARCHITECTURES[name]
    settings = PreprocessSettings(architecture.image_resolution)
    backend = make_backend(device, precision, compiles=compiles)
    if isinstance(backend, CudaBackend):
        backend.compile_after = 0
    return Engine(weights_of(name), architecture, settings, backend, batch_size)


def assert_compiled(made: Engine) -> None:
    """Fail where the graph of full batches ran uncompiled, as after a failure of the compiler."""
    graph = made._graphs[torch.uint8]
    assert isinstance(graph, CudaGraph)
    assert graph.is_compiled


@cache
def on_cpu(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in fp32 of 13 images and of `tokens`."""
    exact = engine(name, CPU)
    return exact.encode_pixels(pixels(13, exact.settings.resolution_px)), exact.encode_text(tokens())


def pixels(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def tokens() -> torch.Tensor:
    """Tokens of texts of all lengths."""
    return clip.tokenize([*formula.TEXTS, "", "a " * 75, "a " * 20])


def min_cosine(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    assert found.device.type == "cuda"
    return float(torch.cosine_similarity(found.float().cpu(), expected).min())


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14 in four layers", "RN50"])
def test_fp16_features_point_where_fp32_ones_do(name: str) -> None:
    architecture, weights = ARCHITECTURES[name], weights_of(name)
    settings = PreprocessSettings(architecture.image_resolution)

    def load(device: str) -> clip.model.CLIP:
        return load_model(Checkpoint(architecture, dict(weights), settings, source="formula"), torch.device(device))

    preprocess = clip.clip._transform(architecture.image_resolution)
    images = torch.stack([preprocess(formula.picture(i, 640, 427)) for i in range(8)])
    texts = clip.tokenize(formula.TEXTS)
    halves, floats = load("cuda"), load("cpu")
    assert halves.dtype == torch.float16
    with torch.no_grad():
        for half, full in (
            (halves.encode_image(images.cuda()), floats.encode_image(images)),
            (halves.encode_text(texts.cuda()), floats.encode_text(texts)),
        ):
            assert half.dtype == torch.float16
            assert torch.cosine_similarity(half.float().cpu(), full).min() >= 0.9999


@pytest.mark.parametrize("precision", ["reference", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50", "ViT-L/14 in four layers"])
def test_the_lean_graph_points_where_fp32_on_a_cpu_does(name: str, precision: Any) -> None:
    """Full batches, a padded one, one image, floats, and texts of all lengths."""
    found = engine(name, CUDA, precision, batch_size=6, compiles=precision == "reference")
    of_images, of_texts = on_cpu(name)
    least = COSINE["fp16" if precision == "reference" else precision]
    images = pixels(13, found.settings.resolution_px)
    floats = normalize_pixels(images, found.settings)
    assert min_cosine(found.encode_pixels(images), of_images) >= least
    assert min_cosine(found.encode_pixels(images[:1]), of_images[:1]) >= least
    assert min_cosine(found.encode_image(floats), of_images) >= least
    assert min_cosine(found.encode_image(floats.cuda()), of_images) >= least
    assert min_cosine(found.encode_text(tokens()), of_texts) >= least
    assert found.encode_pixels(images).dtype == found.backend.dtype
    if precision == "reference":
        assert_compiled(found)


def test_fp8_stays_near() -> None:
    if "fp8" not in usable_precisions(CUDA):
        pytest.skip("this GPU has no fp8")
    name = "ViT-L/14 of images"
    images = pixels(8, 224)
    found, expected = engine(name, CUDA, "fp8", batch_size=8, compiles=True), engine(name, CPU).encode_pixels(images)
    assert min_cosine(found.encode_pixels(images), expected) >= COSINE["fp8"]
    assert_compiled(found)


def test_a_graph_that_is_compiled_beside_the_running_one_takes_its_place() -> None:
    made = engine("tiny-vit-wide", CUDA, batch_size=4, compiles=True)
    assert isinstance(made.backend, CudaBackend)
    made.backend.compile_after = 2
    images = pixels(4, 56)
    expected = made.encode_pixels(images).cpu()
    graph = made._graphs[torch.uint8]
    assert isinstance(graph, CudaGraph)
    assert not graph.is_compiled
    while not graph.is_compiled:
        assert torch.allclose(made.encode_pixels(images).cpu(), expected, atol=2e-3, rtol=2e-3)
        assert graph._compiled is not None, "the compiler failed"
    assert torch.allclose(made.encode_pixels(images).cpu(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("side", [32, 224])
def test_images_that_the_gpu_resizes_are_pillows_to_the_bit(side: int) -> None:
    """Of many sizes, tall ones too; the CPU runs the same function on thousands in test_resize.py."""
    rng, settings = random.Random(side), PreprocessSettings(side)
    images = [
        formula.picture(n, rng.randint(20, 400), rng.randint(20, 400)).convert("RGB" if n % 3 else "L")
        for n in range(200)
    ]
    found = windows.resize(images, settings, "cuda")
    assert np.array_equal(found, [to_pixels(image, settings) for image in images])


def test_memory_that_processes_share_is_pinned_and_read_where_it_lies() -> None:
    side = 224
    ring = CropRing(256, side)
    drawn = pixels(256, side)
    ring.crops[:] = drawn.numpy()
    made = engine("ViT-B/32", CUDA, batch_size=128)
    expected = made.encode_pixels(drawn).cpu()
    with pin(ring.crops, CUDA):
        given = torch.from_numpy(ring.crops)
        assert given.is_pinned()
        assert torch.equal(made.encode_pixels(given).cpu(), expected)
    assert not torch.from_numpy(ring.crops).is_pinned()
    ring.close()


def test_threads_take_turns_and_get_their_own_features() -> None:
    shared = engine("tiny-vit-wide", CUDA, batch_size=4, compiles=True)
    images = pixels(40, 56)
    expected = shared.encode_pixels(images).cpu()
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda start: shared.encode_pixels(images[start : start + 5]).cpu(), range(0, 40, 5)))
    assert torch.allclose(torch.cat(parts), expected, atol=2e-3, rtol=2e-3)


def test_pinned_memory_is_not_filled_before_it_has_crossed_the_bus() -> None:
    """Many batches in one call, each of a colour of its own: a slot reused too early would show another's."""
    shared = engine("ViT-B/32", CUDA, batch_size=256)
    images = torch.arange(2048).remainder(251).to(torch.uint8)[:, None, None, None].expand(-1, 224, 224, 3).contiguous()
    one_by_one = torch.cat([shared.encode_pixels(image[None]).cpu() for image in images[:251]])
    expected = one_by_one[torch.arange(2048).remainder(251)]
    assert torch.allclose(shared.encode_pixels(images).cpu(), expected, atol=2e-3, rtol=2e-3)


def test_memory_that_runs_out_halves_the_batch() -> None:
    made = engine("ViT-B/32", CUDA, batch_size=16_384)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / total))
    try:
        features = made.encode_pixels(pixels(32, 224).repeat(300, 1, 1, 1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert features.shape == (9600, 512)
    assert features.isfinite().all()
    assert made.batch_size < 16_384


def test_streams_of_two_threads_do_not_meet_in_a_graph() -> None:
    shared = engine("tiny-vit-wide", CUDA, batch_size=64)
    images = pixels(512, 56).cuda()
    expected = shared.encode_pixels(images)

    def on_a_stream(_: int) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            features = shared.encode_pixels(images)
            torch.cuda.current_stream().synchronize()
        return features

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        for features in pool.map(on_a_stream, range(12)):
            assert torch.allclose(features, expected, atol=2e-3, rtol=2e-3)


def test_the_batch_suits_the_gpu() -> None:
    backend = make_backend(CUDA)
    assert isinstance(backend, CudaBackend)
    for name, architecture in formula.ARCHITECTURES.items():
        assert backend.batch_size(architecture) >= 32, name
    assert usable_precisions(CUDA)[0] == "fp16"
