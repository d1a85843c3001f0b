"""On a GPU: the reference's dtypes, and fp16 features beside fp32 ones."""

import formula
import pytest
import torch

import clip
from clip.engine import load_model
from clip.items import Checkpoint, PreprocessSettings

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14", "RN50"])
def test_fp16_features_point_where_fp32_ones_do(name: str) -> None:
    architecture = formula.ARCHITECTURES[name]
    weights = formula.state_dict(architecture)
    settings = PreprocessSettings(architecture.image_resolution)

    def load(device: str) -> clip.model.CLIP:
        return load_model(Checkpoint(architecture, dict(weights), settings, source="formula"), torch.device(device))

    preprocess = clip.clip._transform(architecture.image_resolution)
    images = torch.stack([preprocess(formula.picture(i, 640, 427)) for i in range(8)])
    tokens = clip.tokenize(formula.TEXTS)
    on_gpu, on_cpu = load("cuda"), load("cpu")
    assert on_gpu.dtype == torch.float16
    with torch.no_grad():
        for half, full in (
            (on_gpu.encode_image(images.cuda()), on_cpu.encode_image(images)),
            (on_gpu.encode_text(tokens.cuda()), on_cpu.encode_text(tokens)),
        ):
            assert half.dtype == torch.float16
            assert torch.cosine_similarity(half.float().cpu(), full).min() >= 0.9999
