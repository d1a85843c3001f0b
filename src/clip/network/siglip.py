"""SigLIP's network, of fixed resolution: plain, eager modules with the methods of OpenAI's model.

SigLIP and SigLIP 2 differ in weights, vocabulary and sizes only. Names of modules are those of model.py where both have
the same. Beside that network: patches have a bias; there is no class token, and an attention pool with an MLP reads the
patches instead; texts have no mask, the last of their tokens is read, and its projection has a bias; pairs are scored
by a sigmoid, with a bias.

Axes in comments: B images, T texts, R pixels a side, P pixels a patch's side, L tokens, W width, D embed_dim.
Source:  google-research/big_vision models/vit.py, models/proj/image_text; transformers 5.23 models/siglip.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from .meta_init import build_on_meta

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..tokenizer_file import TokenizerFile
    from .records import Gelu, PreprocessSettings, SiglipArchitecture

LAYER_NORM_EPS = 1e-6
APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}  # as torch calls the two


def make_mlp(width: int, mlp_width: int, activation: Gelu) -> nn.Sequential:
    """Return the MLP of a block or a pool. Shapes: (..., W) -> (..., W)."""
    layers = {
        "c_fc": nn.Linear(width, mlp_width),
        "gelu": nn.GELU(approximate=APPROXIMATE[activation]),
        "c_proj": nn.Linear(mlp_width, width),
    }
    return nn.Sequential(OrderedDict[str, nn.Module](layers))


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection. Shapes: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Gelu) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = make_mlp(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        n = self.ln_1(x)
        x = x + self.attn(n, n, n, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks. Shapes: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, activation: Gelu) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, mlp_width, activation) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        return self.resblocks(x)


class AttentionPool(nn.Module):
    """Attention from one learned query, the probe, and an MLP. Shapes: (B, L, W) -> (B, W)."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Gelu, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(width))
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = make_mlp(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, W)."""
        probe = self.probe.expand(len(x), 1, -1)  # (B, 1, W)
        x = self.attn(probe, x, x, need_weights=False)[0][:, 0]  # (B, W)
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Patches, blocks, and a pool. Shapes: (B, 3, R, R) -> (B, W); pixels that make no whole patch are left out."""

    def __init__(
        self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int,
        activation: Gelu,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.positional_embedding = nn.Parameter(torch.empty((input_resolution // patch_size) ** 2, width))
        self.transformer = Transformer(width, layers, heads, mlp_width, activation)
        self.ln_post = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attnpool = AttentionPool(width, heads, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, W)."""
        x = self.conv1(x).flatten(start_dim=2).transpose(1, 2)  # (B, L, W)
        x = self.transformer(x + self.positional_embedding)
        return self.attnpool(self.ln_post(x))


class SigLIP(nn.Module):
    """Both towers, the temperature and the bias of scores. `clip.load` builds one from weights.

    Shapes:  images (B, 3, R, R) and tokens (T, L) -> logits (B, T) and (T, B), whose sigmoids are probabilities.
    """

    preprocess_settings: PreprocessSettings | None = None  # of its checkpoint
    tokenizer: TokenizerFile | None = None

    def __init__(self, architecture: SiglipArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.context_length, self.vocab_size = a.context_length, a.vocab_size
        self.visual = VisionTransformer(
            a.image_resolution,
            a.vision_patch_size,
            a.vision_width,
            a.vision_layers,
            a.vision_heads,
            a.vision_mlp_width,
            a.vision_activation,
        )
        width = a.transformer_width
        self.token_embedding = nn.Embedding(a.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(a.context_length, width))
        self.transformer = Transformer(
            width, a.transformer_layers, a.transformer_heads, a.transformer_mlp_width, a.text_activation
        )
        self.ln_final = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.text_projection = nn.Linear(width, a.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw what torch leaves empty at random, as SigLIP does before training."""
        for weight in (self.visual.positional_embedding, self.visual.attnpool.probe):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        nn.init.normal_(self.positional_embedding, std=0.01)

    @staticmethod
    def lay_out(architecture: SiglipArchitecture) -> SigLIP:
        """Return the network of an architecture, without memory for its weights: they are on the meta device."""
        return build_on_meta(lambda: SigLIP(architecture))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that images are cast to and that features have."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode images as features, which are not normalised.

        Shapes:  (B, 3, R, R) of any dtype, cast to `self.dtype` -> (B, D).
        Units:   1 is white and -1 black, as `preprocess` returns.
        """
        return self.visual(image.type(self.dtype))

    def tokenize(self, texts: str | Iterable[str], context_length: int | None = None, truncate: bool = False) -> Tensor:
        """Tokenize by this model's vocabulary and length. Shapes: T texts -> int32 (T, L).

        A text that is too long is an error unless `truncate`, as `clip.tokenize` has it.
        """
        table = cast("TokenizerFile", self.tokenizer).tabulate(texts, context_length or self.context_length, truncate)
        return torch.from_numpy(table)

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token tables as features, which are not normalised. Shapes: int (T, L), as `tokenize` -> (T, D)."""
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]  # (T, L, W)
        x = self.ln_final(self.transformer(x))
        return self.text_projection(x[:, -1])  # (T, W) -> (T, D)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine of every image with every text, times the temperature, and the bias added.

        Shapes:  (B, 3, R, R) and (T, L) -> (B, T) and its transpose (T, B).
        """
        image_features = nn.functional.normalize(self.encode_image(image), dim=1)
        text_features = nn.functional.normalize(self.encode_text(text), dim=1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t() + self.logit_bias  # (B, T)
        return logits_per_image, logits_per_image.t()
