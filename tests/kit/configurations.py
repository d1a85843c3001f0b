"""The configurations that open_clip and transformers write for a network."""

import copy
from typing import Any

from clip.network.records import Architecture


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one entry set, at a path like "model_cfg.text_cfg.width"."""
    whole = copy.deepcopy(config)
    *parents, last = path.split(".")
    target = whole
    for parent in parents:
        target = target[parent]
    target[last] = value
    return whole


def open_clip_config(a: Architecture, preprocess: dict[str, object] | None = None) -> dict[str, Any]:
    vision: dict[str, object] = {"image_size": a.image_resolution, "width": a.vision_width}
    if isinstance(a.vision_layers, tuple):
        vision |= {"layers": list(a.vision_layers)}
    else:
        heads = a.vision_heads or a.vision_width // 64
        vision |= {"layers": a.vision_layers, "patch_size": a.vision_patch_size, "head_width": a.vision_width // heads}
        vision |= {"mlp_ratio": round((a.vision_mlp_width or 4 * a.vision_width) / a.vision_width + 5e-5, 4)}
    text = {"context_length": a.context_length, "vocab_size": a.vocab_size, "width": a.transformer_width}
    text |= {"heads": a.transformer_heads, "layers": a.transformer_layers}
    if a.transformer_mlp_width:
        text |= {"mlp_ratio": a.transformer_mlp_width / a.transformer_width}
    model = {"embed_dim": a.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if a.activation == "quick_gelu":
        model |= {"quick_gelu": True}
    return {"model_cfg": model, "preprocess_cfg": preprocess or {}}


def transformers_config(a: Architecture) -> dict[str, Any]:
    def tower(width: int, heads: int, layers: Any, mlp_width: int | None) -> dict[str, Any]:
        shape = {"hidden_size": width, "intermediate_size": mlp_width or 4 * width, "num_attention_heads": heads}
        return shape | {"num_hidden_layers": layers, "hidden_act": a.activation}

    text = {"vocab_size": a.vocab_size, "max_position_embeddings": a.context_length, "eos_token_id": a.vocab_size - 1}
    vision = {"image_size": a.image_resolution, "patch_size": a.vision_patch_size}
    heads, mlp_widths = a.vision_heads or a.vision_width // 64, (a.vision_mlp_width, a.transformer_mlp_width)
    return {
        "model_type": "clip",
        "projection_dim": a.embed_dim,
        "text_config": tower(a.transformer_width, a.transformer_heads, a.transformer_layers, mlp_widths[1]) | text,
        "vision_config": tower(a.vision_width, heads, a.vision_layers, mlp_widths[0]) | vision,
    }
