"""training/sketch.py: which captions are true, its vocabulary, its loss, and a short run that ends in a model."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import measuring
import numpy as np
import pytest
import sketch as training
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

import clip
from clip.demo.scenes import claim, compose, make_twin, say
from clip.simple_tokenizer import SimpleTokenizer


@given(st.integers(0, 2**32))
def test_true_all_at_once_is_true_one_by_one(seed: int) -> None:
    rng = Random(seed)
    scenes = [scene for one in (compose(rng) for _ in range(20)) for scene in (one, make_twin(rng, one))]
    statements = [claim(rng, scene, full=rng.random() < 0.3) for scene in scenes]
    truth = training.compute_truth(
        torch.tensor([training.statement_slots(statement) for statement in statements]),
        torch.tensor([statement.second is not None for statement in statements]),
        torch.tensor([training.scene_slots(scene) for scene in scenes]),
    )
    assert truth.tolist() == [[statement.is_true_of(scene) for scene in scenes] for statement in statements]
    assert truth.diagonal().all()


def test_merges_are_learnt_until_every_word_is_one_token() -> None:
    words = Counter({"red": 5, "ring": 4, "reddish": 1, "of": 9, "犬": 1})
    merges = training.learn_merges(words)
    tokenizer = SimpleTokenizer(merges=merges)
    assert all(len(tokenizer.encode_word(word)) == 1 for word in words)
    assert merges[0] == ("o", "f</w>")
    assert len(tokenizer.encode_word("rings")) > 1


def test_the_vocabulary_knows_each_word_of_the_captions() -> None:
    tokenizer = training.learn_vocabulary()
    rng = Random(5)
    for _ in range(500):
        text = say(rng, claim(rng, compose(rng, unseen=True)))
        assert len(tokenizer.encode(text)) == len(list(tokenizer.words(text))) <= training.CONTEXT_LENGTH


def test_the_loss_is_clips_and_ignores_what_is_also_true() -> None:
    features = torch.eye(3)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    scale = torch.tensor(2.0)
    expected = math.log(math.exp(2) + 2) - 2
    assert training.contrastive_loss(features, features, scale, nothing).item() == pytest.approx(expected)
    texts = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])  # the second repeats the first
    plain = training.contrastive_loss(features, texts, scale, nothing)
    also_true = nothing.clone()
    also_true[1, 0] = True
    assert training.contrastive_loss(features, texts, scale, also_true) < plain
    also_true.fill_diagonal_(True)
    masked = training.contrastive_loss(features, features, scale, also_true)
    assert masked.isfinite()
    assert masked < expected


def test_attributes_that_a_caption_does_not_give_are_no_target() -> None:
    torch.manual_seed(0)
    attributes = training.Attributes(8)
    features = torch.randn(2, 8, requires_grad=True)
    targets = torch.full((2, len(training.VALUES)), training.UNKNOWN)
    targets[0, 0] = 3
    attributes(features, targets).backward()
    assert features.grad is not None
    assert features.grad[0].any()
    assert not features.grad[1].any()


def test_a_short_run_writes_a_model_with_its_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "CHUNK", 32)
    monkeypatch.setattr(
        training, "world", lambda seed, **options: measuring.world(seed, scenes=20, singles=20, **options)
    )
    monkeypatch.setattr(training, "VOCABULARY_CAPTIONS", 500)
    monkeypatch.setattr(training, "ProcessPoolExecutor", ThreadPoolExecutor)
    path = tmp_path / "model.safetensors"
    options = ["--seed", "3", "--scenes", "64", "--epochs", "2", "--batch", "16", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["sketch.py", *options])
    training.main()
    assert '"held out: recall_1": ' in capsys.readouterr().out
    with safe_open(path, "pt") as file:
        notes = {name: json.loads(note) for name, note in file.metadata().items()}
        dtypes = Counter(str(file.get_tensor(name).dtype) for name in file.keys())  # noqa: SIM118
    assert notes["recipe"]["seed"] == 3
    assert len(notes["log"]) == 3
    assert {"held out: shape", "unseen pairs: recall_5", "shuffled captions: recall_1"} <= notes["figures"].keys()
    assert set(dtypes) == {"torch.float16", "torch.float32", "torch.int64"}
    model, _ = clip.load(path, device="cpu")
    assert notes["card"]["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert model.tokenize("a red star").shape == (1, 32)


@pytest.mark.parametrize("options", [(1_000, 256), (256_000, 255), (4_000, 256)])
def test_scenes_that_would_be_left_over_are_refused(options: tuple[int, int]) -> None:
    scenes, batch = options
    with pytest.raises(SystemExit, match="expected a multiple of 2000 and of an even batch"):
        training.Recipe(scenes=scenes, batch=batch)


def test_a_reader_that_knows_everything_finds_all_and_one_that_knows_nothing_finds_nothing() -> None:
    world = measuring.world("a test", scenes=40, singles=20)
    numbered = {id(image): number for number, image in enumerate([*world.images, *world.decoys])}
    one_hot = np.eye(2 * 40 + 1)

    def encode_images(images: list[Image.Image]) -> np.ndarray:
        return one_hot[[numbered.get(id(image), -1) for image in images]]

    def encode_texts(texts: list[str]) -> np.ndarray:
        return one_hot[[world.captions.index(text) if text in world.captions else -1 for text in texts]]

    knowing = measuring.measure(world, encode_images, encode_texts)
    assert (knowing.recall_1, knowing.recall_5, knowing.recall_1_among_decoys) == (1, 1, 1)
    for nothing in (np.ones(4), np.full(4, np.nan)):
        blind = measuring.measure(world, always(nothing), always(nothing))
        assert (blind.recall_1, blind.recall_5, blind.recall_1_among_decoys) == (0, 0, 0)


def always(vector: np.ndarray) -> Callable[[Sequence[object]], np.ndarray]:
    return lambda some: np.tile(vector, (len(some), 1))
