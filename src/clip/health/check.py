"""check_model(name): whether weights, vocabulary, pixels and this machine give the vectors that they should.

Weights are compared with published figures where there are any: of OpenAI's ViT-B/32, 80 prompts. Everything else is
compared with the network in float64 on this machine, which needs no figures.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from ..encoder import Encoder
from ..engine.devices import resolve_device, usable_precisions
from ..errors import WeightsMissingError
from ..images.preprocess import normalize_pixels
from ..images.transform import to_pixels
from ..jobs.health import CheckRow
from ..network.meta_init import fill
from ..network.records import PreprocessSettings
from ..simple_tokenizer import shared_tokenizer
from ..text.tokens import token_table
from ..weights import locate
from ..weights.catalog import find_cached
from ..weights.checkpoints import read_checkpoint
from ..weights.families import lay_out
from ..weights.releases import RELEASES
from ..weights.spellings import find_spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.options import Precision
    from ..network.records import Checkpoint

PROMPTS = Path(__file__).with_name("released_prompts.json")
PROMPTED = "ViT-B/32"  # the model of these figures
# The figures are of fp16, whose features of these prompts are at most 0.007 of a row's RMS, of 0.5, from fp32's with
# random weights; trained ones have larger outliers. Another model is some 0.5 away.
COMPONENT_TOLERANCE, NORM_TOLERANCE = 0.03, 0.005  # absolute; of the norm
VIT_TOLERANCE, RESNET_TOLERANCE = 2e-5, 1e-4  # of a row's RMS, fp32: as README promises
MIN_COSINE: dict[str, float] = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.9995, "fp8": 0.99}
TEXTS = ("a photo of a cat", "a red boat, at sea!", "It's 42 degrees in Zürich", "日本の写真 &amp; <3")
# sha256 of what the reference makes of `draw_image` and of TEXTS. tests/unit/health/test_check.py holds them to Pillow
# and to the tokenizer, and both to OpenAI's (tests/parity/test_golden.py).
GOLDEN_PIXELS = {
    "shortest, bicubic, 224 px": "c9729d9e458af965b0d3532b3708bc3df3186fcceba5d0dfdcaee03564c8958c",
    "squash, bilinear, 256 px": "c3e48548f45719566befd769779b55b84a5a90393f940d130fdb935b12f8b1c8",
}
GOLDEN_TOKENS = "6b0749e4df8e109681049b74deff963511f66fdd2d2b13347230e0d97ca0d313"


def check_model(
    name: str, download_root: str | None = None, architecture: str | None = None, device: str = "auto"
) -> list[CheckRow]:
    """Return what was compared for a model whose weights are on this machine: nothing is fetched.

    Raises:  WeightsMissingError for a released model that is not here; as `Encoder` for anything else.
    """
    path = find_here(name, download_root)
    checkpoint = read_checkpoint(path, architecture)
    released = find_spelled(name, RELEASES)
    rows = [_check_pixels(kind) for kind in GOLDEN_PIXELS]
    rows.append(_check_tokens(checkpoint))
    if released is not None and path.is_file():
        found = locate.file_sha256(path)
        rows.append(CheckRow("weights: sha256", found, RELEASES[released].sha256, found == RELEASES[released].sha256))
    images, tokens = _make_inputs(checkpoint)
    exact = _run_in_float64(checkpoint, images, tokens)
    make = lambda precision: Encoder(path, precision=precision, architecture=architecture, device=device)  # noqa: E731
    for precision in usable_precisions(resolve_device(device)):
        rows += _check_precision(precision, make, checkpoint, (images, tokens), exact)
    rows += _check_prompts(make("reference"), released)
    return rows


def find_here(name: str, download_root: str | None) -> Path:
    """Return where the weights of a name or path are on this machine.

    Raises:  WeightsMissingError for those that would have to be fetched, UnknownModelError for any other name.
    """
    released = find_spelled(name, RELEASES)
    if released is not None and not Path(name).exists():
        path = find_cached(RELEASES[released], download_root)
        if path is None:
            remedy = f"Run: clip fetch {released}"
            raise WeightsMissingError(name, "its weights are not on this machine", "them in the cache", remedy)
        return Path(path)
    return locate.locate(locate.locate_here(name), download_root)


def draw_image() -> Image.Image:
    """Return the image whose pixels are compared, 640 x 427: smooth colours with a fine pattern, made of integers."""
    y, x = np.mgrid[0:427, 0:640]
    channels = [(x * 255) // 639, (y * 255) // 426, ((x * 7 + y * 13) % 256)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def hash_pixels(kind: str) -> str:
    """Return the sha256 of what this machine makes of the image, in one of the ways of GOLDEN_PIXELS."""
    mode, interpolation, side = kind.removesuffix(" px").split(", ")
    settings = PreprocessSettings(int(side), interpolation=cast("Any", interpolation), resize_mode=cast("Any", mode))
    return hashlib.sha256(np.ascontiguousarray(to_pixels(draw_image(), settings)).tobytes()).hexdigest()


def hash_tokens() -> str:
    """Return the sha256 of the tokens of TEXTS by OpenAI's vocabulary, as little-endian int32."""
    return hashlib.sha256(token_table(shared_tokenizer(), TEXTS, 77).numpy().astype("<i4").tobytes()).hexdigest()


def _check_pixels(kind: str) -> CheckRow:
    found = hash_pixels(kind)
    return CheckRow(f"pixels: {kind}", found[:12], GOLDEN_PIXELS[kind][:12], found == GOLDEN_PIXELS[kind])


def _check_tokens(checkpoint: Checkpoint) -> CheckRow:
    if checkpoint.tokenizer is not None:
        return CheckRow("tokens", "a vocabulary of its own", "no published figures", None)
    found = hash_tokens()
    return CheckRow("tokens: OpenAI's vocabulary", found[:12], GOLDEN_TOKENS[:12], found == GOLDEN_TOKENS)


def _make_inputs(checkpoint: Checkpoint) -> tuple[np.ndarray, torch.Tensor]:
    """Return pixels, uint8 (2, R, R, 3), and tokens, int32 (4, L): of TEXTS, or ids of any, where those need a file."""
    image = draw_image()
    turned = image.transpose(Image.Transpose.ROTATE_90)
    pixels = np.stack([to_pixels(one, checkpoint.preprocess) for one in (image, turned)])
    a = checkpoint.architecture
    if checkpoint.tokenizer is None:
        return pixels, token_table(shared_tokenizer(), TEXTS, a.context_length, truncate=True)
    ids = torch.arange(len(TEXTS) * a.context_length, dtype=torch.int32).reshape(len(TEXTS), -1)
    tokens = (ids * 7919) % max(2, a.vocab_size - 1)
    tokens[:, -1] = a.vocab_size - 1  # the highest, which is where a CLIP reads a text
    return pixels, tokens


def _run_in_float64(checkpoint: Checkpoint, images: np.ndarray, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    model = fill(lay_out(checkpoint.architecture).double(), dict(checkpoint.state_dict), "cpu")
    normalised = normalize_pixels(torch.from_numpy(images), checkpoint.preprocess).double()
    with torch.no_grad():
        return model.encode_image(normalised).numpy(), model.encode_text(tokens.long()).numpy()


def _check_precision(
    precision: str,
    make: Callable[[Precision], Encoder],
    checkpoint: Checkpoint,
    inputs: tuple[np.ndarray, torch.Tensor],
    exact: tuple[np.ndarray, np.ndarray],
) -> list[CheckRow]:
    """Compare the fast path in one precision with the network in float64."""
    if precision not in MIN_COSINE:  # int8 depends on the images that it is calibrated by
        return [CheckRow(f"{precision} beside float64", "not measured", "clip tune measures it on your images", None)]
    encoder = make(cast("Precision", precision))
    found = encoder.encode_pixels(inputs[0]), encoder.encode_text(inputs[1]).float().cpu().numpy()
    least = min(float(_cosines(mine, theirs).min()) for mine, theirs in zip(found, exact, strict=True))
    bound = MIN_COSINE[precision]
    rows = [CheckRow(f"{precision} beside float64", f"cosine {least:.7f}", f"at least {bound}", least >= bound)]
    if precision == "fp32":
        is_resnet = isinstance(checkpoint.architecture.vision_layers, tuple)
        bounds = (RESNET_TOLERANCE if is_resnet else VIT_TOLERANCE, VIT_TOLERANCE)
        for side, mine, theirs, most in zip(("images", "texts"), found, exact, bounds, strict=True):
            error = float((np.abs(mine - theirs).max(axis=1) / np.sqrt(np.square(theirs).mean(axis=1))).max())
            check = f"fp32, fast path of {side} beside the network in float64"
            rows.append(CheckRow(check, f"{error:.1e} of RMS", f"at most {most:.0e}", error <= most))
    return rows


def _cosines(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    dots = (mine.astype(np.float64) * theirs).sum(axis=1)
    return dots / np.linalg.norm(mine.astype(np.float64), axis=1) / np.linalg.norm(theirs, axis=1)


@cache
def read_prompts() -> dict[str, Any]:
    """Return the published figures: `components`, and `rows` of text, norm and the values of these components."""
    return json.loads(PROMPTS.read_text("utf-8"))


def compare_prompts(features: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of a component, and of a norm as a part of it. Shapes: float (80, D)."""
    figures = read_prompts()
    values = np.array([row["values"] for row in figures["rows"]])
    norms = np.array([row["norm"] for row in figures["rows"]])
    own = np.linalg.norm(features.astype(np.float64), axis=1)
    return float(np.abs(features[:, figures["components"]] - values).max()), float(np.abs(own / norms - 1).max())


def _check_prompts(encoder: Encoder, released: str | None) -> list[CheckRow]:
    """Compare with the figures of OpenAI's ViT-B/32 where this is that model."""
    if released != PROMPTED:
        return [CheckRow("published figures", "none", f"there are some of {PROMPTED} only", None)]
    texts = [row["text"] for row in read_prompts()["rows"]]
    component, norm = compare_prompts(encoder.encode_text(texts).float().cpu().numpy())
    check = f"OpenAI's {released}: {len(texts)} prompts"
    return [
        CheckRow(f"{check}, 32 components", f"{component:.4f} off", f"at most {COMPONENT_TOLERANCE}",
                 component <= COMPONENT_TOLERANCE),
        CheckRow(f"{check}, norms", f"{norm:.2%} off", f"at most {NORM_TOLERANCE:.1%}", norm <= NORM_TOLERANCE),
    ]  # fmt: skip
