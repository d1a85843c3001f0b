"""The network: plain, eager modules with OpenAI's names, which users may patch.

The engine is tested against this network. Module tree, state-dict keys and layouts are those of openai/CLIP@d05afc4
clip/model.py, so that subclasses, hooks, `.train()` and patches written for it work here.

Axes in comments: B images, T texts, C channels, R pixels per side, L tokens, W width, D embed_dim, H heads.
Inside the transformers tensors are sequence first: (L, B, W).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Tuple, Union, cast  # noqa: UP035  Tuple is of OpenAI's names

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckpointError
from .fast.path import FastModule
from .network.architecture import HEAD_WIDTH, MLP_RATIO, POOL_STRIDE, drop_archive_buffers, infer_architecture
from .network.meta_init import build_on_meta, fill
from .simple_tokenizer import SimpleTokenizer, shared_tokenizer
from .text.tokens import check_ids, token_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .network.records import Activation, Architecture, PreprocessSettings

# What a star import brings from OpenAI's module, with its own imports.
__all__ = ["CLIP", "AttentionPool2d", "Bottleneck", "LayerNorm", "ModifiedResNet", "QuickGELU"]
__all__ += ["ResidualAttentionBlock", "Transformer", "VisionTransformer", "build_model", "convert_weights"]
__all__ += ["F", "OrderedDict", "Tuple", "Union", "nn", "np", "torch"]


def _draw(std: float, *shape: int) -> nn.Parameter:
    """Return a parameter drawn at random. The order of the draws is OpenAI's, so that a seed gives the same network."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


class Bottleneck(nn.Module):
    """A residual block whose stride is an average pool, in the block and in its shortcut.

    Shapes:  (B, inplanes, R, R) -> (B, 4 * planes, R / stride, R / stride).
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        self.stride = stride
        if stride > 1 or inplanes != outplanes:
            # The pool is named "-1", so that the convolution and its norm have torchvision's names "0" and "1".
            self.downsample = nn.Sequential(
                OrderedDict[str, nn.Module](
                    {
                        "-1": nn.AvgPool2d(stride),
                        "0": nn.Conv2d(inplanes, outplanes, 1, bias=False),
                        "1": nn.BatchNorm2d(outplanes),
                    }
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, R, R) -> (B, 4 * planes, R / stride, R / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + identity)


class AttentionPool2d(nn.Module):
    """Attention pooling of a feature map, with the mean of the map as the only query.

    Shapes:  (B, C, R, R) -> (B, D).
    """

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None) -> None:
        super().__init__()
        tokens = spacial_dim**2 + 1
        self.positional_embedding = _draw(embed_dim**-0.5, tokens, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R) -> (B, D)."""
        x = x.flatten(start_dim=2).permute(2, 0, 1)  # (B, C, R, R) -> (R*R, B, C)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)  # (L, B, C), L = R*R + 1
        x = x + self.positional_embedding[:, None, :].to(x.dtype)
        # The layers' weights are read and the layers not called, so that hooks on them do not fire, as with OpenAI's.
        pooled, _ = F.multi_head_attention_forward(
            query=x[:1], key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=self.num_heads,
            use_separate_proj_weight=True, in_proj_weight=None, q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            out_proj_weight=self.c_proj.weight, out_proj_bias=self.c_proj.bias, training=self.training,
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, need_weights=False,
        )  # fmt: skip
        return pooled.squeeze(0)  # (1, B, D) -> (B, D)


class ModifiedResNet(nn.Module):
    """A ResNet with a stem of three layers, average pools for strides, and attention as its last pool.

    Shapes:  (B, 3, R, R) -> (B, D).
    """

    attnpool: AttentionPool2d | None  # users set it to None to read the feature map

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.input_resolution = input_resolution

        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)

        self._inplanes = width  # channels that the next layer reads; `_make_layer` updates it
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(width * 2, layers[1], stride=2)
        self.layer3 = self._make_layer(width * 4, layers[2], stride=2)
        self.layer4 = self._make_layer(width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // POOL_STRIDE, width * 32, heads, output_dim)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        outplanes = planes * Bottleneck.expansion
        first = Bottleneck(self._inplanes, planes, stride)
        self._inplanes = outplanes
        return nn.Sequential(first, *(Bottleneck(outplanes, planes) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, R, R), cast to the dtype of the weights -> (B, D)."""
        x = x.type(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))  # (B, W/2, R/2, R/2)
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))  # (B, W, R/2, R/2)
        x = self.avgpool(x)  # (B, W, R/4, R/4)
        x = self.layer1(x)  # (B, 4W, R/4, R/4)
        x = self.layer2(x)  # (B, 8W, R/8, R/8)
        x = self.layer3(x)  # (B, 16W, R/16, R/16)
        x = self.layer4(x)  # (B, 32W, R/32, R/32)
        return self.attnpool(x)  # pyright: ignore[reportOptionalCall]  where it is None OpenAI's fails alike


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 or wider and returns its input's dtype, whatever dtype its weights have.

    OpenAI's casts only the input, so that a model fails after `.half()`, `.bfloat16()` or `.double()`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        normed = F.layer_norm(
            input.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps
        )
        return normed.to(input.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that the released weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return x * torch.sigmoid(1.702 * x)


def _unusual(mlp_width: int | None, activation: Activation) -> dict[str, Any]:
    """Return the arguments that OpenAI's classes lack, leaving out defaults, as classes of users may lack them too."""
    arguments = {"mlp_width": mlp_width, "activation": activation}
    return {name: value for name, value in arguments.items() if value not in (None, "quick_gelu")}


class ResidualAttentionBlock(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection. Shapes: (L, B, W) -> (L, B, W)."""

    attn_mask: Tensor | None

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        mlp_width = mlp_width or d_model * MLP_RATIO
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                {
                    "c_fc": nn.Linear(d_model, mlp_width),
                    "gelu": QuickGELU() if activation == "quick_gelu" else nn.GELU(),
                    "c_proj": nn.Linear(mlp_width, d_model),
                }
            )
        )
        self.ln_2 = LayerNorm(d_model)
        # Not a buffer: what averages, stacks or broadcasts buffers would compute with its infinities.
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Apply self-attention with the block's mask. (L, B, W) -> (L, B, W)."""
        mask = self.attn_mask
        if mask is not None and (mask.dtype, mask.device) != (x.dtype, x.device):
            mask = mask.to(x)
            # Kept, as `.to()` of the model does not move it, unless a later call could not use it.
            if type(x) is Tensor and not (x.is_meta or mask.is_inference()):
                self.attn_mask = mask
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        """(L, B, W) -> (L, B, W)."""
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks. Shapes: (L, B, W) -> (L, B, W)."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        unusual = _unusual(mlp_width, activation)
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, attn_mask, **unusual) for _ in range(layers))
        )

    def blocks(self) -> Iterator[ResidualAttentionBlock]:
        """Yield `resblocks`, typed."""
        return (cast("ResidualAttentionBlock", block) for block in self.resblocks)

    def forward(self, x: Tensor) -> Tensor:
        """(L, B, W) -> (L, B, W)."""
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """The Vision Transformer: patches and a class token, blocks, and a projection of the class token.

    Shapes:  (B, 3, R, R) in the weights' dtype -> (B, D).
    """

    proj: nn.Parameter | None  # users set it to None to read the unprojected class token

    def __init__(
        self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int,
        *, mlp_width: int | None = None, activation: Activation = "quick_gelu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        tokens = (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = _draw(scale, width)
        self.positional_embedding = _draw(scale, tokens, width)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, **_unusual(mlp_width, activation))
        self.ln_post = LayerNorm(width)
        self.proj = _draw(scale, width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D)."""
        x = self.conv1(x)  # (B, W, R/P, R/P), P pixels per patch
        x = x.flatten(start_dim=2).transpose(1, 2)  # (B, L-1, W)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (B, 1, W)
        x = torch.cat([class_token, x], dim=1)  # (B, L, W)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # (B, L, W), inside (L, B, W)
        x = self.ln_post(x[:, 0])  # (B, W)
        return x if self.proj is None else x @ self.proj  # (B, W) -> (B, D)


class CLIP(FastModule):
    """Both towers and the temperature. `clip.load` builds one from weights.

    Shapes:  images (B, 3, R, R) and tokens (T, L) -> logits (B, T) and (T, B).
    Source:  openai/CLIP@d05afc4 clip/model.py:243, same arguments.
    """

    text_projection: nn.Parameter | None  # users set it to None, or replace it
    preprocess_settings: PreprocessSettings | None = None  # of its checkpoint
    tokenizer: SimpleTokenizer | None = None  # None for the vocabulary of the released models

    def __init__(
        self, embed_dim: int, image_resolution: int,
        vision_layers: int | tuple[int, int, int, int], vision_width: int, vision_patch_size: int | None,
        context_length: int, vocab_size: int, transformer_width: int, transformer_heads: int, transformer_layers: int,
        # only for models that OpenAI did not release; network.records.Architecture explains them
        *, activation: Activation = "quick_gelu", vision_heads: int | None = None,
        vision_mlp_width: int | None = None, transformer_mlp_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual: ModifiedResNet | VisionTransformer
        if isinstance(vision_layers, (tuple, list)):
            heads = vision_width * 32 // HEAD_WIDTH
            self.visual = ModifiedResNet(vision_layers, embed_dim, heads, image_resolution, vision_width)
        else:
            if vision_patch_size is None:
                raise CheckpointError("`vision_patch_size`", "found None for a ViT", "pixels per patch", "Pass them.")
            self.visual = VisionTransformer(
                image_resolution,
                vision_patch_size,
                vision_width,
                vision_layers,
                vision_heads or max(1, vision_width // HEAD_WIDTH),
                embed_dim,
                **_unusual(vision_mlp_width, activation),
            )
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads,
            self.build_attention_mask(),
            **_unusual(transformer_mlp_width, activation),
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw the weights at random as OpenAI does before training; openai/CLIP@d05afc4 clip/model.py:299."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, ModifiedResNet):
            pool = self.visual.attnpool
            if pool is not None:
                for proj in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                    nn.init.normal_(proj.weight, std=pool.c_proj.in_features**-0.5)
            for name, parameter in self.visual.named_parameters():
                if name.endswith("bn3.weight") and name.startswith("layer"):
                    nn.init.zeros_(parameter)  # each block starts as its identity
        width, layers = self.transformer.width, self.transformer.layers
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.blocks():
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            c_fc, _, c_proj = block.mlp
            nn.init.normal_(cast("nn.Linear", c_fc).weight, std=(2 * width) ** -0.5)
            nn.init.normal_(cast("nn.Linear", c_proj).weight, std=residual_std)
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=width**-0.5)

    def build_attention_mask(self) -> Tensor:
        """Return the causal mask of the text tower: (L, L), -inf above the diagonal, 0 elsewhere."""
        # On the CPU even for a model on "meta": the mask is no weight, so nothing would fill it later.
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), dtype=torch.float32, device="cpu").triu_(1)

    @staticmethod
    def lay_out(architecture: Architecture) -> CLIP:
        """Return the network of an architecture, without memory for its weights: they are on the meta device."""
        return build_on_meta(lambda: CLIP(**vars(architecture)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that images are cast to and that features have."""
        visual = self.__dict__["_modules"].get("visual")  # not handed out by `self.visual`, for fast/watch.py
        return visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode images as features, which are not normalised.

        Where no gradient is wanted and nothing of the model was changed, the lean graph computes them (`fast_path`).

        Shapes:  (B, 3, R, R) of any dtype, cast to `self.dtype` -> (B, D); B may be 0.
        Units:   in standard deviations from the training mean, as `preprocess` returns; bytes are cast, not scaled.
        """
        features = self._encode_fast("image", image)
        return self.visual(image.type(self.dtype)) if features is None else features

    def tokenize(self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False) -> Tensor:
        """Tokenize as `clip.tokenize` does, by this model's vocabulary and length. Shapes: T texts -> int32 (T, L)."""
        return token_table(self.tokenizer or shared_tokenizer(), texts, context_length or self.context_length, truncate)

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token tables as features, which are not normalised.

        Shapes:  int (T, L), as `tokenize` returns -> (T, D).
        Raises:  InputError (a ValueError) for ids of another vocabulary, if the model has its own.
        """
        if self.tokenizer is not None:  # else not, as on CUDA looking at the ids waits for the device
            check_ids(text, self.vocab_size)
        features = self._encode_fast("text", text)
        if features is not None:
            return features
        x = self.token_embedding(text).type(self.dtype)  # (T, L, W)
        x = x + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # (T, L, W), inside (L, T, W)
        x = self.ln_final(x).type(self.dtype)
        # The end-of-text token has the highest id, so argmax finds its position.
        x = x[torch.arange(x.shape[0], device=x.device), text.argmax(dim=-1)]  # (T, W)
        return x @ self.text_projection  # (T, W) -> (T, D)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine of every image with every text, times the temperature.

        Shapes:  (B, 3, R, R) and (T, L) -> (B, T) and its transpose (T, B).
        """
        image_features = self.encode_image(image)
        text_features = self.encode_text(text)
        image_features = image_features / image_features.norm(dim=1, keepdim=True)
        text_features = text_features / text_features.norm(dim=1, keepdim=True)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()  # (B, T)
        return logits_per_image, logits_per_image.t()


def convert_weights(model: nn.Module) -> None:
    """Convert a model's matrices to fp16 in place; its norms, embeddings and temperature stay fp32.

    Source:  openai/CLIP@d05afc4 clip/model.py:375; counts per model in tests/unit/test_model.py.
    """

    def halve(module: nn.Module) -> None:
        names: tuple[str, ...] = ("text_projection", "proj")  # on any module that has them
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            names += ("weight", "bias")
        if isinstance(module, nn.MultiheadAttention):
            names += ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            names += ("in_proj_bias", "bias_k", "bias_v")
        for name in names:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                tensor.data = tensor.data.half()

    model.apply(halve)


def load_weights(
    state_dict: dict[str, Tensor], architecture: Architecture, *, device: torch.device | str = "cpu", mixed_fp16: bool
) -> CLIP:
    """Return a model on `device` with copies of these weights, in eval mode. Empties `state_dict`.

    With `mixed_fp16` weights are fp16 where `convert_weights` makes them so, otherwise all are float32.

    Raises:  CheckpointError (a RuntimeError) where names or shapes do not fit the architecture.
    """
    model = CLIP.lay_out(architecture).float()  # whatever torch.set_default_dtype says
    if mixed_fp16:
        convert_weights(model)
    return fill(model, state_dict, device)


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """Return the CLIP that has these weights, in eval mode, fp16 where `convert_weights` makes them so.

    The weights are copied; the caller's dict is not changed.

    Raises:  CheckpointKeyError (a KeyError) or CheckpointError (a RuntimeError) for other weights.
    Source:  openai/CLIP@d05afc4 clip/model.py:399.
    """
    weights = drop_archive_buffers(state_dict)
    return load_weights(weights, infer_architecture(weights), mixed_fp16=True)
