"""A model that brings its own vocabulary: in its file, in the drop-in model, in the encoder, in a job."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kit import formula
from kit.jobs import embed_job
from safetensors import safe_open
from safetensors.torch import save_file

import clip
from clip.errors import CheckpointError, InputError, TextTooLongError
from clip.network.records import HEADER_KEY, Checkpoint, PreprocessSettings
from clip.simple_tokenizer import SimpleTokenizer
from clip.weights.checkpoints import export, read_checkpoint

MERGES = [("r", "e"), ("re", "d</w>"), ("s", "t"), ("a", "r</w>"), ("st", "ar</w>")]
IDS = 512 + len(MERGES) + 2
RED_STAR = [IDS - 2, 513, 516, IDS - 1]
LENGTH = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = replace(formula.TINY["tiny-vit"], vocab_size=IDS, context_length=LENGTH)
    checkpoint = Checkpoint(
        architecture,
        formula.state_dict(architecture),
        PreprocessSettings(architecture.image_resolution),
        source="",
        tokenizer=SimpleTokenizer(merges=MERGES),
    )
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    export(checkpoint, path, {"about": "a test"})
    return path


def rewritten(path: Path, folder: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """A copy with another header."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()[HEADER_KEY])
    change(header)
    save_file(tensors, folder / "changed.safetensors", {HEADER_KEY: json.dumps(header)})
    return folder / "changed.safetensors"


def test_a_vocabulary_makes_its_own_ids_and_reads_them_back() -> None:
    tokenizer = SimpleTokenizer(merges=MERGES)
    assert len(tokenizer.encoder) == IDS
    assert tokenizer.encode("Red STAR") == RED_STAR[1:-1]
    assert tokenizer.decode(tokenizer.encode("a red star, 犬")) == "a red star , 犬 "


def test_a_vocabulary_may_be_larger_than_openais() -> None:
    letters = [*map(chr, range(97, 123)), *map(chr, range(48, 58)), "_"]
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b in pairs for c in letters]
    tokenizer = SimpleTokenizer(merges=[*pairs, *triples, ("!", "?</w>")])
    assert len(tokenizer.bpe_ranks) > 48_894
    assert tokenizer.bpe("x!?") == "x !?</w>"


def test_the_file_brings_it_along(weights: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(weights)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.encode("red star") == RED_STAR[1:-1]
    export(checkpoint, tmp_path / "again.safetensors")
    again = read_checkpoint(tmp_path / "again.safetensors").tokenizer
    assert again is not None
    assert again.encoder == checkpoint.tokenizer.encoder
    with safe_open(weights, "pt") as file:
        assert file.metadata()["about"] == "a test"


def test_the_model_and_the_encoder_speak_it(weights: Path) -> None:
    model, _ = clip.load(weights, device="cpu")
    encoder = clip.Encoder(weights, device="cpu")
    rows = model.tokenize(["red star", "star"])
    assert rows.dtype == torch.int32
    assert rows.shape == (2, LENGTH)
    assert rows[0, :4].tolist() == RED_STAR
    assert not rows[0, 4:].any()
    assert torch.equal(encoder.tokenize(["red star", "star"]), rows)
    with torch.no_grad():
        wanted = model.encode_text(rows)
    for given in (["red star", "star"], rows):
        torch.testing.assert_close(encoder.encode_text(given), wanted, rtol=1e-4, atol=1e-4)
    assert model.tokenize("red " * 99, truncate=True)[0, -1] == IDS - 1
    for tokenize in (model.tokenize, encoder.tokenize):
        with pytest.raises(TextTooLongError, match=f"found 101 tokens, expected at most {LENGTH}"):
            tokenize("red " * 99)


def test_a_model_without_one_speaks_openais(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save(formula.state_dict(formula.TINY["tiny-vit"]), path)
    model, _ = clip.load(path, device="cpu")
    assert model.tokenizer is None
    assert torch.equal(model.tokenize("a diagram"), clip.tokenize("a diagram"))
    assert torch.equal(clip.Encoder(model).tokenize("a diagram"), clip.tokenize("a diagram"))


def test_ids_of_another_vocabulary_are_refused_and_the_way_is_named(weights: Path) -> None:
    model, _ = clip.load(weights, device="cpu")
    for encode in (model.encode_text, clip.Encoder(model).encode_text):
        foreign = clip.tokenize("a diagram")
        with pytest.raises(
            InputError, match=rf"ids from 0 to 49407, expected 0 to {IDS - 1}.*model\.tokenize\(texts\)"
        ):
            encode(foreign)
    with pytest.raises(InputError, match="ids from -1"):
        model.encode_text(torch.full((1, LENGTH), -1))


def test_it_goes_along_when_a_model_is_copied_or_given_to_an_encoder(weights: Path) -> None:
    model, _ = clip.load(weights, device="cpu")
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same.tokenize("red star")[0, :4].tolist() == RED_STAR
    assert clip.Encoder(model).tokenize("red star")[0, :4].tolist() == RED_STAR
    assert model.state_dict().keys() == formula.layout(formula.TINY["tiny-vit"]).state_dict().keys()


def test_a_job_of_texts_and_its_check_use_it(weights: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("red star\nstar\nred star star red\n")
    out = tmp_path / "out"
    job = embed_job(source=captions, output=out, model=str(weights), texts=True, device="cpu")
    assert clip.embed(job).written == 3
    stored = np.stack(pq.read_table(out / "embeddings")["embedding"].to_numpy())
    wanted = clip.Encoder(weights, device="cpu").encode_text(captions.read_text().splitlines())
    np.testing.assert_allclose(stored, torch.nn.functional.normalize(wanted).numpy(), atol=1e-5)
    from clip.batch.verify import verify

    report = verify(clip.VerifyJob(output=out, sample=3))
    assert report.problems == ()
    assert report.min_cosine is not None
    assert report.min_cosine > 0.99999


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (["r e", "x  y"], "merge 1 is 'x  y', expected two symbols"),
        (["r e", "st ar</w>"], "merge 1 is 'st ar</w>', expected two symbols that merges before it made"),
        (["r e", 7], "merge 1 is 7"),
        ({"r": "e"}, r"merge 0 is \{'r': 'e'\}"),
        (7, "merge 0 is 7"),
        (["r e", "r e"], "merge 1 is 'r e', expected .* together a new one"),
        ([f"a {chr(letter)}" for letter in range(97, 123)], "a vocabulary of 540 ids, expected at most the 519"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(merges: object, message: str, weights: Path, tmp_path: Path) -> None:
    changed = rewritten(weights, tmp_path, lambda header: header.update(merges=merges))
    with pytest.raises(CheckpointError, match=message) as refused:
        read_checkpoint(changed)
    assert str(refused.value).startswith(str(changed))


def test_without_its_merges_a_file_is_a_model_with_openais_vocabulary(weights: Path, tmp_path: Path) -> None:
    assert read_checkpoint(rewritten(weights, tmp_path, lambda header: header.update(merges=None))).tokenizer is None
