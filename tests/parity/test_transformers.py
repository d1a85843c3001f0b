"""Beside an implementation we did not write: transformers' CLIPModel, on the same random weights."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import clip
from clip.items import Architecture
from clip.model import CLIP
from clip.weights import RELEASES

VITS = [name for name in RELEASES if name.startswith("ViT")]
TOLERANCE = 5e-5  # of the RMS of a row


def their_config(a: Architecture) -> CLIPConfig:
    def tower(width: int, heads: int, layers: int) -> dict[str, object]:
        shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        return shape | {"num_hidden_layers": layers, "projection_dim": a.embed_dim, "hidden_act": "quick_gelu"}

    text = {"vocab_size": a.vocab_size, "max_position_embeddings": a.context_length, "eos_token_id": 49407}
    vision = {"image_size": a.image_resolution, "patch_size": a.vision_patch_size}
    return CLIPConfig(
        text_config=tower(a.transformer_width, a.transformer_heads, a.transformer_layers) | text,
        vision_config=tower(a.vision_width, a.vision_width // 64, a.vision_layers) | vision,
        projection_dim=a.embed_dim,
    )


def our_weights(theirs: CLIPModel) -> dict[str, torch.Tensor]:
    """OpenAI's names for transformers' weights."""
    source = theirs.state_dict()
    ours = {
        "logit_scale": source["logit_scale"],
        "visual.proj": source["visual_projection.weight"].T,
        "text_projection": source["text_projection.weight"].T,
        "visual.class_embedding": source["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": source["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": source["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": source["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": source["text_model.embeddings.position_embedding.weight"],
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    modules = norms | {"ln_final": "text_model.final_layer_norm"}
    for prefix, tower in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        layers = {key.split(".")[3] for key in source if key.startswith(f"{tower}.encoder.layers.")}
        for n in layers:
            block, layer = f"{prefix}.resblocks.{n}", f"{tower}.encoder.layers.{n}"
            for kind in ("weight", "bias"):
                qkv = [source[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                ours[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
            modules |= {
                f"{block}.attn.out_proj": f"{layer}.self_attn.out_proj",
                f"{block}.mlp.c_fc": f"{layer}.mlp.fc1",
                f"{block}.mlp.c_proj": f"{layer}.mlp.fc2",
                f"{block}.ln_1": f"{layer}.layer_norm1",
                f"{block}.ln_2": f"{layer}.layer_norm2",
            }
    for mine, their in modules.items():
        ours |= {f"{mine}.{kind}": source[f"{their}.{kind}"] for kind in ("weight", "bias")}
    return ours


def worst_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    rms = expected.square().mean(dim=1).sqrt()
    return float(((found - expected).abs().amax(dim=1) / rms).max())


@pytest.mark.parametrize("name", VITS)
def test_features_equal_those_of_transformers(name: str) -> None:
    architecture = RELEASES[name].architecture
    torch.manual_seed(0)
    theirs = CLIPModel(their_config(architecture)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # theirs start with norms of 1 and biases of 0, which would hide a swap
            parameter.add_(torch.randn_like(parameter) * 0.02)
        with torch.device("meta"):
            ours = CLIP(*vars(architecture).values())
        ours.load_state_dict(our_weights(theirs), strict=True, assign=True)
        ours.eval()
        images = torch.randn(2, 3, architecture.image_resolution, architecture.image_resolution)
        tokens = clip.tokenize(["a diagram", "a photo of a dog, and a cat!"])
        their_image, their_text = theirs.get_image_features(images), theirs.get_text_features(tokens.long())
        if not isinstance(their_image, torch.Tensor):  # transformers 5 wraps them
            their_image, their_text = their_image.pooler_output, their_text.pooler_output
        assert worst_error(ours.encode_image(images), their_image) < TOLERANCE
        assert worst_error(ours.encode_text(tokens), their_text) < TOLERANCE
