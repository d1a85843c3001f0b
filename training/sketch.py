"""Train the sketch model: draw scenes with captions, train a CLIP on them, measure how well it finds new images.

    python training/sketch.py --seed 0 --output src/clip/weights/sketch.safetensors

Everything is drawn here (clip.demo.scenes, clip.demo.drawing); nothing is downloaded. The package's own network is
trained with the CLIP paper's contrastive loss, and with three additions, because that loss alone hardly learns shapes:

- one linear layer, dropped afterwards, reads the scene's attributes from the features of both towers: it teaches shape,
  and keeps the attributes apart, so that pairs never drawn are found too;
- half of each batch are twins of the other half, which differ in one attribute;
- where a caption is true of another scene of its batch, that scene does not count as a negative.

Axes: B scenes of a batch, S slots of a scene's description.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from measuring import measure, world
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import clip
from clip.demo.drawing import draw
from clip.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    UNSEEN,
    Scene,
    Statement,
    claim,
    compose,
    make_twin,
    say,
)
from clip.images.decode import read_pixels
from clip.images.steps import Normalize
from clip.model import CLIP, convert_weights
from clip.network.records import BYTE_MAX, Architecture, Checkpoint, PreprocessSettings
from clip.parallel import available_cores
from clip.simple_tokenizer import SimpleTokenizer, join_pairs
from clip.text.tokens import token_table
from clip.weights.checkpoints import export

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY_CAPTIONS = 50_000
CHUNK = 2_000  # scenes that a process draws at a time
SETTINGS, CONTEXT_LENGTH = PreprocessSettings(64), 32
MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021, 2.5
UNKNOWN = -1  # the value of a slot about which a caption says nothing
# The slots that describe a scene, and how many values each has; absence is one more value, the last.
FIRST_SHAPE, FIRST_COLOUR, FIRST_SIZE, COUNT, RELATION, SECOND_SHAPE, SECOND_COLOUR, SECOND_SIZE, BACKGROUND = range(9)
VALUES = (len(SHAPES), len(COLOURS), len(SIZES) + 1, len(COUNTS), len(RELATIONS) + 1,
          len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(BACKGROUNDS))  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on, apart from the versions of libraries."""

    seed: int = 0
    scenes: int = 160_000  # drawn once; each epoch has other captions of them
    epochs: int = 5
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 300  # steps
    attributes: float = 0.5  # weight of their loss; the contrastive loss has 1

    def __post_init__(self) -> None:
        if self.scenes % CHUNK or self.scenes % self.batch or self.batch % 2:
            raise SystemExit(f"scenes: found {self.scenes}, expected a multiple of {CHUNK} and of an even batch.")


def architecture(vocab_size: int) -> Architecture:
    """Return a small ResNet and a small transformer; heads are 64 wide in both."""
    return Architecture(
        embed_dim=256,
        image_resolution=SETTINGS.resolution_px,
        vision_layers=(1, 2, 2, 1),
        vision_width=16,
        vision_patch_size=None,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocab_size,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=3,
    )


def learn_vocabulary() -> SimpleTokenizer:
    """Return a tokenizer in which each word of the captions is one token, the same for every seed of the weights."""
    rng = Random("vocabulary")
    plain = SimpleTokenizer(merges=())
    words: Counter[str] = Counter()
    for _ in range(VOCABULARY_CAPTIONS):
        words.update(plain.words(say(rng, claim(rng, compose(rng)))))
    return SimpleTokenizer(merges=learn_merges(words))


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Return the pairs that byte-pair encoding joins, most frequent first, until each word is one symbol."""
    plain = SimpleTokenizer(merges=())
    split = {word: [plain.decoder[token] for token in plain.encode_word(word)] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: join_pairs(symbols, best) for word, symbols in split.items()}


def draw_scenes(recipe: Recipe) -> tuple[list[Scene], np.ndarray]:
    """Draw all scenes of a recipe, each followed by its twin; return them and their pixels, uint8 (N, R, R, 3)."""
    numbers = range(recipe.scenes // CHUNK)
    with ProcessPoolExecutor(available_cores()) as processes:
        chunks = list(processes.map(_draw_chunk, itertools.repeat(recipe.seed), numbers))
    return [scene for scenes, _ in chunks for scene in scenes], np.concatenate([pixels for _, pixels in chunks])


def _draw_chunk(seed: int, number: int) -> tuple[list[Scene], np.ndarray]:
    rng = Random(f"training {seed} {number}")
    scenes: list[Scene] = []
    while len(scenes) < CHUNK:
        scene = compose(rng)
        scenes += [scene, make_twin(rng, scene)]
    return scenes, np.stack([read_pixels(draw(rng, scene), SETTINGS) for scene in scenes])


def scene_slots(scene: Scene) -> list[int]:
    """Return a scene's value in each slot."""
    first, second = scene.first, scene.second
    return [
        SHAPES.index(first.shape),
        COLOURS.index(first.colour),
        _index(SIZES, first.size),
        COUNTS.index(scene.count),
        _index(RELATIONS, scene.relation),
        _index(SHAPES, second and second.shape),
        _index(COLOURS, second and second.colour),
        _index(SIZES, second and second.size),
        BACKGROUNDS.index(scene.background),
    ]


def _index(values: tuple[str, ...], value: str | None) -> int:
    """Return the index of a value; None comes after the last."""
    return len(values) if value is None else values.index(value)


def statement_slots(statement: Statement) -> list[int]:
    """Return the value that a statement gives each slot, UNKNOWN if it gives none."""

    def known(choices: tuple[str, ...], value: str | None) -> int:
        return UNKNOWN if value is None else choices.index(value)

    first, second = statement.first, statement.second
    values = [UNKNOWN] * len(VALUES)
    values[FIRST_SHAPE], values[FIRST_COLOUR] = known(SHAPES, first.shape), known(COLOURS, first.colour)
    values[FIRST_SIZE], values[COUNT] = known(SIZES, first.size), COUNTS.index(statement.count)
    values[RELATION] = known(RELATIONS, statement.relation)
    if second is not None:
        values[SECOND_SHAPE], values[SECOND_COLOUR] = known(SHAPES, second.shape), known(COLOURS, second.colour)
        values[SECOND_SIZE] = known(SIZES, second.size)
    values[BACKGROUND] = known(BACKGROUNDS, statement.background)
    return values


def compute_truth(statements: Tensor, two: Tensor, scenes: Tensor) -> Tensor:
    """Return `Statement.is_true_of` for every statement and scene. Shapes: (B, S), (B,), (B, S) -> bool (B, B)."""

    def fits(claimed_slots: list[int], shown_slots: list[int]) -> Tensor:
        claimed, shown = statements[:, None, claimed_slots], scenes[None, :, shown_slots]
        return ((claimed == UNKNOWN) | (claimed == shown)).all(-1)

    first, second = [FIRST_SHAPE, FIRST_COLOUR, FIRST_SIZE], [SECOND_SHAPE, SECOND_COLOUR, SECOND_SIZE]
    has_second = (scenes[:, RELATION] != len(RELATIONS))[None]
    unordered = (statements[:, RELATION] == UNKNOWN)[:, None]
    both = fits([*first, *second, RELATION], [*first, *second, RELATION])
    swapped = unordered & fits([*first, *second], [*second, *first])
    alone = fits([*first, COUNT], [*first, COUNT])
    as_second = (statements[:, COUNT] == 0)[:, None] & fits(first, second)
    fits_two, fits_one = has_second & (both | swapped), alone | (has_second & as_second)
    return fits([BACKGROUND], [BACKGROUND]) & torch.where(two[:, None], fits_two, fits_one)


class Attributes(nn.Module):
    """One linear layer that reads a scene's slots from the features of its image or of its caption."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(embed_dim, sum(VALUES))

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the known slots. Shapes: (B, D), (B, S) -> ()."""
        losses = [
            F.cross_entropy(logits, targets[:, slot], ignore_index=UNKNOWN, reduction="sum")
            for slot, logits in enumerate(self.read(features).split(VALUES, dim=1))
        ]
        return torch.stack(losses).sum() / (targets != UNKNOWN).sum()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, also_true: Tensor) -> Tensor:
    """Return CLIP's loss, false negatives masked. Shapes: (B, D), (B, D), (), bool (B, B) text by image -> ()."""
    logits = scale * F.normalize(text, dim=1) @ F.normalize(image, dim=1).T  # (B, B)
    logits = logits.masked_fill(also_true & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@dataclass(frozen=True)
class Batch:
    """The input of one step."""

    images: Tensor  # float (B, 3, R, R), normalised
    tokens: Tensor  # int (B, L)
    scenes: Tensor  # (B, S)
    statements: Tensor  # (B, S)
    two: Tensor  # bool (B,): the caption names two things


class Batches:
    """Batches of pairs of twins, in another order and with other captions in each epoch."""

    def __init__(self, recipe: Recipe, tokenizer: SimpleTokenizer, device: torch.device) -> None:
        self.scenes, self.pixels = draw_scenes(recipe)
        self._slots = torch.tensor([scene_slots(scene) for scene in self.scenes])
        self._recipe, self._tokenizer, self._device = recipe, tokenizer, device
        self._rng = Random(f"captions {recipe.seed}")
        self._order = np.random.default_rng(recipe.seed)
        self._normalize = Normalize(SETTINGS.mean, SETTINGS.std)

    def epoch(self) -> Iterator[Batch]:
        """Yield all scenes once."""
        pairs = self._order.permutation(len(self.scenes) // 2)
        for chosen in pairs.reshape(-1, self._recipe.batch // 2):
            yield self._batch(np.concatenate([2 * chosen, 2 * chosen + 1]))

    def _batch(self, chosen: np.ndarray) -> Batch:
        statements = [claim(self._rng, self.scenes[i], full=self._rng.random() < 0.5) for i in chosen]
        texts = [say(self._rng, statement) for statement in statements]
        images = torch.from_numpy(self.pixels[chosen]).to(self._device).permute(0, 3, 1, 2)
        return Batch(
            images=self._normalize(images.float() / BYTE_MAX).contiguous(memory_format=torch.channels_last),
            tokens=token_table(self._tokenizer, texts, CONTEXT_LENGTH).to(self._device),
            scenes=self._slots[chosen].to(self._device),
            statements=torch.tensor([statement_slots(statement) for statement in statements], device=self._device),
            two=torch.tensor([statement.second is not None for statement in statements], device=self._device),
        )


def text_targets(batch: Batch) -> Tensor:
    """Return the slots that a caption determines; none if it does not say which of two things it means."""
    vague = (batch.scenes[:, RELATION] != len(RELATIONS)) & (batch.statements[:, RELATION] == UNKNOWN)
    return batch.statements.masked_fill(vague[:, None], UNKNOWN)


def train(recipe: Recipe, device: torch.device) -> tuple[CLIP, SimpleTokenizer, list[str]]:
    """Return a trained model in eval mode, its tokenizer, and the log."""
    torch.manual_seed(recipe.seed)
    tokenizer = learn_vocabulary()
    shape = architecture(len(tokenizer.encoder))
    model = CLIP(**vars(shape)).to(device, memory_format=torch.channels_last)
    attributes = Attributes(shape.embed_dim).to(device)
    started = time.perf_counter()
    batches = Batches(recipe, tokenizer, device)
    lines = [f"drew {len(batches.scenes):,} scenes in {time.perf_counter() - started:.0f} s"]
    print(lines[-1], flush=True)
    weights = [*model.parameters(), *attributes.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6)
    steps = recipe.epochs * (recipe.scenes // recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup) * (1 + np.cos(np.pi * min(1.0, step / steps))) / 2
    )
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        sums, count = torch.zeros(3), 0
        for batch in batches.epoch():
            losses = _compute_losses(model, attributes, batch)
            loss = losses[0] + recipe.attributes * (losses[1] + losses[2])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(MAX_LOGIT_SCALE))
            sums, count = sums + torch.stack(losses).detach().cpu(), count + 1
        seen, seconds = (epoch + 1) * count * recipe.batch, time.perf_counter() - started
        contrastive, by_images, by_captions = (sums / count).tolist()
        lines.append(
            f"epoch {epoch + 1:2}: {seen:,} scenes, {seconds:.0f} s, loss contrastive {contrastive:.4f}, attributes "
            f"of images {by_images:.4f}, of captions {by_captions:.4f}, scale {model.logit_scale.exp():.1f}"
        )
        print(lines[-1], flush=True)
    return model.eval(), tokenizer, lines


def _compute_losses(model: CLIP, attributes: Attributes, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses: contrastive, attributes read from images, attributes read from captions."""
    with torch.autocast(batch.images.device.type, torch.bfloat16):
        image = model.encode_image(batch.images)
        text = model.encode_text(batch.tokens)
    image, text = image.float(), text.float()
    also_true = compute_truth(batch.statements, batch.two, batch.scenes)
    return (
        contrastive_loss(image, text, model.logit_scale.exp(), also_true),
        attributes(image, batch.scenes),
        attributes(text, text_targets(batch)),
    )


def evaluate(path: Path, seed: int) -> dict[str, float]:
    """Measure the written model on new images, with the package's own calls."""
    encoder = clip.Encoder(path, device="cpu")

    def encode_texts(texts: list[str]) -> np.ndarray:
        return encoder.encode_text(texts).numpy()

    seen, unseen = world(f"held out {seed}"), world(f"held out {seed}", unseen=True)
    shuffled = np.random.default_rng(seed).permutation(len(seen.captions)).tolist()
    results = {
        "held out": measure(seen, encoder.embed, encode_texts),
        "unseen pairs": measure(unseen, encoder.embed, encode_texts),
        "shuffled captions": measure(seen, encoder.embed, encode_texts, targets=shuffled),
    }
    return {f"{name}: {key}": value for name, figures in results.items() for key, value in asdict(figures).items()}


def write(model: CLIP, tokenizer: SimpleTokenizer, path: Path, notes: dict[str, object]) -> None:
    """Write the weights, matrices in fp16 as in OpenAI's archives, with the vocabulary and these notes."""
    convert_weights(model)
    shape = architecture(len(tokenizer.encoder))
    state_dict = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(shape, state_dict, SETTINGS, source=str(path), tokenizer=tokenizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    export(checkpoint, path, {name: json.dumps(note) for name, note in notes.items()})


def count_gflops(model: CLIP) -> float:
    """Count the operations for one image, two for each multiply-add. Units: GFLOP."""
    side = model.visual.input_resolution
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_image(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Train, write, evaluate what was written, and write its figures into the same file."""
    parser = argparse.ArgumentParser(description="Train the sketch model.")
    parser.add_argument("--output", type=Path, default=Path("src/clip/weights/sketch.safetensors"))
    parser.add_argument("--device", default="cpu")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    output, device = options.pop("output"), torch.device(options.pop("device"))
    recipe = Recipe(**options)
    model, tokenizer, lines = train(recipe, device)
    card = {"parameters": sum(weight.numel() for weight in model.parameters()), "gflops": count_gflops(model)}
    unseen = sorted(f"{colour} {shape}" for colour, shape in UNSEEN)
    notes: dict[str, object] = {"card": card, "recipe": asdict(recipe), "log": lines, "unseen": unseen}
    write(model, tokenizer, output, notes)
    figures = evaluate(output, recipe.seed)
    write(model, tokenizer, output, notes | {"figures": figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
