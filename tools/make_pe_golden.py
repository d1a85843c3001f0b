"""Write tests/golden/pe.json: what open_clip and timm make of small PE-Cores whose weights a formula gives.

It needs open_clip 3.3 and timm 1.0 beside the package: `PYTHONPATH=src:tests python tools/make_pe_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import open_clip
import timm
import torch
from kit import formula, pe
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2

from clip.weights import pe as names
from clip.weights.pe_layouts import from_pe

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "pe.json"
IMAGES = ((0, 640, 427), (1, 333, 500))
DIGITS = 6


def compute(name: str) -> dict[str, object]:
    """Return the oracle's names of weights, pixels' sums, tokens and features."""
    a, config = pe.architecture(name), pe.open_clip_config(name)["model_cfg"]
    sizes = {
        "img_size": a.image_resolution, "patch_size": a.vision_patch_size, "embed_dim": a.vision_width,
        "depth": a.vision_layers, "num_heads": a.vision_heads, "mlp_ratio": a.vision_mlp_width / a.vision_width,
        "ref_feat_shape": (a.image_resolution // a.vision_patch_size,) * 2,
    }  # fmt: skip
    create = timm.create_model
    with patch.object(timm, "create_model", lambda model, **others: create(model, **others, **sizes)):
        model = CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    model.load_state_dict(from_pe(pe.state_dict(a), "open_clip"))
    size = (a.image_resolution, a.image_resolution)
    transform = image_transform_v2(PreprocessCfg(size=size, **pe.PIXELS), is_train=False)
    images = torch.stack([transform(formula.picture(*image)) for image in IMAGES])
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=a.context_length)(formula.TEXTS)
    with torch.no_grad():
        features = model.encode_image(images), model.encode_text(tokens)
    return {
        "names": sorted(model.state_dict()),
        "pixels": [round(float(image.double().sum()), 3) for image in images],
        "tokens": tokens.tolist(),
        "image_features": [[round(number, DIGITS) for number in row] for row in features[0].tolist()],
        "text_features": [[round(number, DIGITS) for number in row] for row in features[1].tolist()],
    }


def main() -> None:
    """Write the file."""
    with patch.object(names, "_NETWORKS", names._NETWORKS | pe.TINY_ROWS):
        found = {name: compute(name) for name in pe.TINY_ROWS}
    GOLDEN.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
