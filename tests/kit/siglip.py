"""Folders of a SigLIP as transformers and open_clip write them, of weights drawn at random, with a vocabulary."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from clip.network.records import SiglipArchitecture
from clip.network.siglip import SigLIP
from clip.weights.siglip_layouts import from_siglip

# 30 px are three patches of 9 and 3 px that are left over.
TINY = SiglipArchitecture(
    embed_dim=64, image_resolution=30, vision_layers=2, vision_width=64, vision_patch_size=9, vision_heads=4,
    vision_mlp_width=96, context_length=16, vocab_size=700, transformer_width=48, transformer_heads=2,
    transformer_layers=2, transformer_mlp_width=80, vision_activation="gelu_tanh", text_activation="gelu_tanh",
)  # fmt: skip
# The smallest that open_clip has a name for: timm's names hold patch and heads.
TINY_OPEN_CLIP = replace(
    TINY, vision_patch_size=16, image_resolution=48, vision_width=96, embed_dim=96, vision_heads=12,
    vision_activation="gelu", text_activation="gelu_tanh",
)  # fmt: skip
CORPUS = (
    "a photo of a cat",
    "a photo of a dog",
    "two red boats, at sea",
    "ein foto von einem hund",
    "日本の写真",
    "σοφός",
)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


@cache
def state_dict(a: SiglipArchitecture) -> dict[str, torch.Tensor]:
    """Weights under our names; all differ from the values they start with, which would hide a swap."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = SigLIP(a).state_dict()
        drawn = {key: one + torch.randn_like(one) * 0.02 for key, one in weights.items()}
    return drawn | {"logit_scale": torch.tensor(4.7), "logit_bias": torch.tensor(-2.5)}


def transformers_config(a: SiglipArchitecture) -> dict[str, Any]:
    names = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
    text = {"hidden_size": a.transformer_width, "intermediate_size": a.transformer_mlp_width}
    text |= {"num_hidden_layers": a.transformer_layers, "num_attention_heads": a.transformer_heads}
    text |= {"vocab_size": a.vocab_size, "max_position_embeddings": a.context_length, "bos_token_id": 2}
    text |= {"hidden_act": names[a.text_activation], "projection_size": a.embed_dim, "eos_token_id": 1}
    vision = {"hidden_size": a.vision_width, "intermediate_size": a.vision_mlp_width}
    vision |= {"num_hidden_layers": a.vision_layers, "num_attention_heads": a.vision_heads}
    vision |= {"image_size": a.image_resolution, "patch_size": a.vision_patch_size}
    return {
        "model_type": "siglip",
        "text_config": text,
        "vision_config": vision | {"hidden_act": names[a.vision_activation]},
    }


def preprocessor(a: SiglipArchitecture) -> dict[str, Any]:
    """As published for SigLIP 2."""
    side = {"height": a.image_resolution, "width": a.image_resolution}
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 0.00392156862745098}
    steps = {"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True}
    return {**numbers, **steps, "image_processor_type": "SiglipImageProcessor", "size": side}


def open_clip_config(a: SiglipArchitecture) -> dict[str, Any]:
    text = {"context_length": a.context_length, "vocab_size": a.vocab_size, "width": a.transformer_width}
    text |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP2-256", "tokenizer_kwargs": {"clean": "canonicalize"}}
    text |= {"heads": a.transformer_heads, "layers": a.transformer_layers, "no_causal_mask": True, "proj_bias": True}
    text |= {"mlp_ratio": a.transformer_mlp_width / a.transformer_width, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": 1e-6}}
    text |= {"act_kwargs": {"approximate": "tanh"}} if a.text_activation == "gelu_tanh" else {}
    name = f"vit_base_patch{a.vision_patch_size}_siglip_256"
    vision = {"image_size": a.image_resolution, "timm_model_name": name, "timm_model_pretrained": False}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    model = {"embed_dim": a.embed_dim, "init_logit_bias": -10, "custom_text": True}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return {"model_cfg": model | {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": pixels}


@cache
def vocabulary() -> str:
    """A tokenizer.json in the form of Gemma's: byte-pair encoding with bytes, blanks as low lines, an end token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return json.dumps(content, ensure_ascii=False)


def tokenizer_config(name: str = "Siglip2Tokenizer") -> dict[str, Any]:
    tokens = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    adds = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    return {**tokens, **adds, "model_max_length": 64, "tokenizer_class": name}


def write(
    folder: Path, naming: str = "transformers", a: SiglipArchitecture | None = None, *, texts: bool = True
) -> Path:
    """Fill a folder as transformers or open_clip does, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    a = a or (TINY if naming == "transformers" else TINY_OPEN_CLIP)
    weights = from_siglip(state_dict(a), naming)  # type: ignore[arg-type]
    weights = {key: one.contiguous().clone() for key, one in weights.items()}
    if naming == "transformers":
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(transformers_config(a)))
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(a)))
    else:
        save_file(weights, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(a)))
    if texts:
        (folder / "tokenizer.json").write_text(vocabulary())
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    return folder
