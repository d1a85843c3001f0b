"""PE-Core's network, Meta's Perception Encoder: plain, eager modules with the methods of OpenAI's model.

Names of modules are those of model.py and siglip.py where they have the same. Beside OpenAI's network: queries and keys
of the image side are turned by their patch's column and row, beside learned positions; SigLIP's attention pool reads
all tokens, the class token among them, which the largest model does not have; its norm comes before the pool, and its
projection has a bias. The text side is OpenAI's. Both have the exact GELU.

Axes in comments: B images, T texts, R pixels a side, P pixels a patch's side, G = R / P, L tokens, W width, H heads,
N = W / H channels a head, D embed_dim.
Source:  facebookresearch/perception_models core/vision_encoder/pe.py; timm 1.0.31 models/eva.py, open_clip 3.3.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..simple_tokenizer import shared_tokenizer, tabulate
from .meta_init import build_on_meta
from .siglip import AttentionPool, make_mlp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..simple_tokenizer import SimpleTokenizer
    from .records import PeArchitecture, PreprocessSettings

LAYER_NORM_EPS = 1e-5
SLOWEST = 10_000.0  # the angle of the slowest pair is this much smaller than that of the fastest, nearly
START_TEMPERATURE = 1 / 0.07


def make_angles(side: int, head_width: int, *, class_token: bool) -> Tensor:
    """Return the angles in radians by which the pairs of a head's channels are turned, float64.

    The first half of the pairs turns by the patch's column, the second by its row; both count from 1 where there is a
    class token, which is not turned, else from 0.

    Shapes:  (L, N / 2), where a pair is two channels that follow each other.
    """
    quarter = head_width // 4
    speeds = SLOWEST ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    places = torch.arange(side, dtype=torch.float64, device="cpu") + int(class_token)
    turns = places[:, None] * speeds  # (G, N / 4)
    columns, rows = turns.expand(side, -1, -1), turns[:, None].expand(-1, side, -1)  # (G, G, N / 4)
    patches = torch.cat([columns, rows], dim=-1).flatten(end_dim=1)  # (G * G, N / 2)
    return F.pad(patches, (0, 0, int(class_token), 0))


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of channels, the plane of two numbers, by its angle. Shapes: (B, H, L, N) -> the same."""
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(start_dim=-2)


class Attention(nn.Module):
    """Self-attention of tokens that are turned by angles, or without any, each to those before it and to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, L, 3W)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, N)
        if angles is None:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = F.scaled_dot_product_attention(turn(q, angles), turn(k, angles), v)
        return self.out_proj(seen.transpose(1, 2).flatten(start_dim=2))


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection. Shapes: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = make_mlp(width, mlp_width, "gelu")

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        x = x + self.attn(self.ln_1(x), angles)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks. Shapes: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(layers))

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """(B, L, W) -> (B, L, W); without angles a token sees those before it."""
        for block in self.resblocks:
            x = block(x, angles)
        return x


class VisionTransformer(nn.Module):
    """Patches, mostly a class token, blocks, a pool, and a projection. Shapes: (B, 3, R, R) -> (B, D)."""

    class_embedding: nn.Parameter | None

    def __init__(self, architecture: PeArchitecture) -> None:
        super().__init__()
        a, width = architecture, architecture.vision_width
        self.input_resolution = a.image_resolution
        self.side = a.image_resolution // a.vision_patch_size
        self.head_width = width // a.vision_heads
        self.conv1 = nn.Conv2d(3, width, kernel_size=a.vision_patch_size, stride=a.vision_patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width)) if a.class_token else None
        self.positional_embedding = nn.Parameter(torch.empty(self.side**2 + int(a.class_token), width))
        self.ln_pre = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.transformer = Transformer(width, a.vision_layers, a.vision_heads, a.vision_mlp_width)
        self.ln_post = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attnpool = AttentionPool(width, a.pool_heads, a.pool_mlp_width, "gelu", LAYER_NORM_EPS)
        self.proj = nn.Linear(width, a.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D)."""
        x = self.conv1(x).flatten(start_dim=2).transpose(1, 2)  # (B, G * G, W)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)  # (B, L, W)
        x = self.ln_pre(x + self.positional_embedding)
        angles = make_angles(self.side, self.head_width, class_token=self.class_embedding is not None)
        x = self.transformer(x, angles.to(x.device))
        return self.proj(self.attnpool(self.ln_post(x)))  # (B, W) -> (B, D)


class PE(nn.Module):
    """Both towers and the temperature. `clip.load` builds one from weights.

    Shapes:  images (B, 3, R, R) and tokens (T, L) -> logits (B, T) and (T, B).
    """

    preprocess_settings: PreprocessSettings | None = None  # of its checkpoint
    tokenizer: SimpleTokenizer | None = None  # None for the vocabulary of the released models

    def __init__(self, architecture: PeArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        width = a.transformer_width
        self.context_length, self.vocab_size = a.context_length, a.vocab_size
        self.visual = VisionTransformer(a)
        self.token_embedding = nn.Embedding(a.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(a.context_length, width))
        self.transformer = Transformer(width, a.transformer_layers, a.transformer_heads, a.transformer_mlp_width)
        self.ln_final = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.text_projection = nn.Parameter(torch.empty(width, a.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(START_TEMPERATURE).log())
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw what torch leaves empty at random, as before training."""
        visual = self.visual
        for weight in (visual.positional_embedding, visual.attnpool.probe, visual.class_embedding):
            if weight is not None:
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.xavier_uniform_(module.in_proj_weight)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    @staticmethod
    def lay_out(architecture: PeArchitecture) -> PE:
        """Return the network of an architecture, without memory for its weights: they are on the meta device."""
        return build_on_meta(lambda: PE(architecture))

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
        """Tokenize as `clip.tokenize` does, to this model's length, 32 or 72. Shapes: T texts -> int32 (T, L)."""
        tokenizer = self.tokenizer or shared_tokenizer()
        return torch.from_numpy(tabulate(tokenizer, texts, context_length or self.context_length, truncate))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token tables as features, which are not normalised. Shapes: int (T, L), as `tokenize` -> (T, D)."""
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]  # (T, L, W)
        x = self.ln_final(self.transformer(x))
        # The end-of-text token has the highest id, so argmax finds its position.
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]  # (T, W)
        return x @ self.text_projection  # (T, W) -> (T, D)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine of every image with every text, times the temperature.

        Shapes:  (B, 3, R, R) and (T, L) -> (B, T) and its transpose (T, B).
        """
        image_features = F.normalize(self.encode_image(image), dim=1)
        text_features = F.normalize(self.encode_text(text), dim=1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()  # (B, T)
        return logits_per_image, logits_per_image.t()
