"""Checkpoints one step from those known: prefixes, heads, optimizers, arguments, folders, parts, and other networks."""

import argparse
import datetime
import enum
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from kit.archives import SMALLEST
from kit.configurations import transformers_config
from safetensors.torch import save_file

import clip
from clip.errors import CheckpointError, CheckpointKeyError, UnsafeCheckpointError
from clip.weights.checkpoints import read_checkpoint
from clip.weights.layouts import find_places, to_transformers

VIT, RESNET = SMALLEST["vit"], SMALLEST["rn"]
WEIGHTS = {"vit": formula.state_dict(VIT), "rn": formula.state_dict(RESNET)}
THEIRS = {key: tensor.contiguous() for key, tensor in to_transformers(WEIGHTS["vit"], VIT).items()}


def under(prefix: str, weights: dict[str, torch.Tensor] = WEIGHTS["vit"]) -> dict[str, Any]:
    return {f"{prefix}{key}": tensor for key, tensor in weights.items()}


def assert_read(content: object, path: Path, name: str = "vit") -> None:
    torch.save(content, path)
    read = read_checkpoint(path)
    assert read.architecture == SMALLEST[name]
    assert read.state_dict.keys() == WEIGHTS[name].keys()
    assert all(torch.equal(read.state_dict[key], tensor) for key, tensor in WEIGHTS[name].items())


PREFIX = st.lists(st.text("abcdefgh_0123", min_size=1, max_size=9), max_size=4).map(
    lambda parts: "".join(f"{part}." for part in parts)
)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "clip.", "clip_model.model.", "visual.", "text."]
)
def test_a_clip_is_read_under_any_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    assert_read(under(prefix, WEIGHTS[name]), tmp_path / "a.pt", name)


@given(PREFIX, st.dictionaries(st.text("abcxyz.", min_size=1, max_size=12), st.integers(), max_size=4))
@settings(deadline=None, max_examples=30)
def test_the_place_is_found_among_any_others(prefix: str, others: dict[str, int]) -> None:
    for weights, naming in ((WEIGHTS["vit"], "openai"), (THEIRS, "transformers")):
        (place,) = find_places([*others, *under(prefix, weights)])
        assert (place.naming, place.prefix) == (naming, prefix)


class Mode(enum.Enum):
    FAST = 1


class Options(dict[str, Any]):
    pass


SCRIPT = argparse.Namespace(lr=1e-5, data="photos", out=Path("out"), mode=Mode.FAST, nested=argparse.Namespace(a=[1]))
BESIDE: dict[str, Any] = {
    "arguments": {"args": SCRIPT},
    "a configuration": {"cfg": Options(a=Options(b=1))},
    "numbers of NumPy": {"best": np.float64(0.5), "rng": ("MT19937", np.arange(9, dtype=np.uint32), 3)},
    "dates, sets, bytes": {"when": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), "a": {1, 2}, "b": b"\0"},
    "counts": {"history": defaultdict(list, loss=[1.0]), "counts": Counter("aab")},
    "an optimizer": {"optimizer": torch.optim.AdamW([torch.zeros(2, requires_grad=True)]).state_dict()},
    "a class": {"model_class": torch.nn.Linear, "dtype": torch.float16, "device": torch.device("cpu")},
    "a whole module": {"criterion": torch.nn.Linear(2, 2)},
    "heads": {"head.weight": torch.zeros(3), "classifier.0.bias": torch.zeros(2)},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net", "none"])
def test_what_training_scripts_keep_beside_weights_is_left_alone(
    wrapper: str, beside: str, zipped: bool, tmp_path: Path
) -> None:
    weights = WEIGHTS["vit"] if wrapper == "none" else {wrapper: OrderedDict(under("module."))}
    torch.save(weights | BESIDE[beside], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(tmp_path / "a.pt").state_dict.keys() == WEIGHTS["vit"].keys()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(protocol: int, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS["vit"], "args": SCRIPT, "a": {1}, "b": frozenset({2}), "c": b"c"}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    assert read_checkpoint(tmp_path / "a.pt").architecture == VIT


def test_heads_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_read(under("model.") | {"head.weight": torch.zeros(3), "queue": torch.zeros(3)}, tmp_path / "a.pt")
    assert caplog.messages == ["left out 2 entries that are no part of a CLIP, such as 'head.weight'"]
    caplog.clear()
    assert_read(WEIGHTS["vit"] | {"epoch": 3}, tmp_path / "a.pt")
    assert caplog.messages == []


@pytest.mark.parametrize(
    "content",
    [
        {"teacher": WEIGHTS["vit"], "student": WEIGHTS["vit"]},
        under("teacher.") | under("student."),
        under("") | under("ema."),
        {"state_dict": under("model.") | under("other.", THEIRS)},
    ],
    ids=["dicts", "prefixes", "a copy", "namings"],
)
def test_of_several_clips_none_is_taken(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"several CLIPs, under .* and .*, expected one\. Save the state dict of"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_call_beside_weights_is_refused_though_it_would_not_be_carried_out(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(tmp_path / 'canary')!r}, 'w').close()",)

    torch.save({"state_dict": WEIGHTS["vit"], "args": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"calls 'builtins\.exec'"):
        read_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "canary").exists()


# Folders.


def write_weights(folder: Path, name: str, weights: dict[str, torch.Tensor] = THEIRS) -> None:
    (save_file if name.endswith(".safetensors") else torch.save)(weights, folder / name)


def write_parts(folder: Path, stem: str, ending: str, index: str | None) -> None:
    names = {key: f"{stem}-{n % 3 + 1:05}-of-00003.{ending}" for n, key in enumerate(THEIRS)}
    for name in set(names.values()):
        write_weights(folder, name, {key: tensor for key, tensor in THEIRS.items() if names[key] == name})
    if index is not None:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def write_trainers(folder: Path) -> None:
    write_weights(folder, "model.safetensors")
    torch.save({"lr": 1}, folder / "training_args.bin")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda folder: write_weights(folder, "model.safetensors"),
    "a pickle": lambda folder: write_weights(folder, "pytorch_model.bin"),
    "fp16": lambda folder: write_weights(folder, "model.fp16.safetensors"),
    "fp16 in a pickle": lambda folder: write_weights(folder, "pytorch_model.fp16.bin"),
    "parts": lambda folder: write_parts(folder, "model", "safetensors", "model.safetensors.index.json"),
    "parts of pickles": lambda folder: write_parts(folder, "pytorch_model", "bin", "pytorch_model.bin.index.json"),
    "parts of fp16": lambda folder: write_parts(
        folder, "model.fp16", "safetensors", "model.safetensors.index.fp16.json"
    ),
    "parts without index": lambda folder: write_parts(folder, "model", "safetensors", None),
    "another name": lambda folder: write_weights(folder, "weights.safetensors"),
    "the trainer's other files": write_trainers,
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("inner", ["", "0_CLIPModel"])
def test_a_folder_is_read_whatever_its_weights_are_called(name: str, inner: str, tmp_path: Path) -> None:
    folder = tmp_path / "model" / inner
    folder.mkdir(parents=True)
    FOLDERS[name](folder)
    (folder / "config.json").write_text(json.dumps(transformers_config(VIT)))
    if inner:  # as sentence-transformers writes it
        modules = [{"idx": 0, "name": "0", "path": inner, "type": "sentence_transformers.models.CLIPModel"}]
        (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    read = read_checkpoint(tmp_path / "model")
    assert all(torch.equal(read.state_dict[key], tensor) for key, tensor in WEIGHTS["vit"].items())
    assert all(file.parent == folder for file in read.files)
    assert read.source == str(tmp_path / "model")


def test_full_precision_goes_before_fp16_and_a_lost_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(VIT)))
    write_weights(tmp_path, "model.fp16.safetensors", {key: tensor.half() for key, tensor in THEIRS.items()})
    write_weights(tmp_path, "pytorch_model.bin")
    assert [file.name for file in read_checkpoint(tmp_path).files] == ["pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").unlink()
    assert read_checkpoint(tmp_path).state_dict["logit_scale"].dtype == torch.float16
    (tmp_path / "model.fp16.safetensors").unlink()
    write_parts(tmp_path, "model", "safetensors", None)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 3 parts are missing, such as 'model-00002-of-00003"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([{"path": "0_CLIPModel", "type": "a.CLIPModel"}, {"path": "1_Dense", "type": "a.Dense"}], "CLIPModel, Dense"),
        ([{"path": "0_CLIPModel", "type": "a.WordEmbeddings"}], "'WordEmbeddings'"),
        ([{"path": "../elsewhere", "type": "a.CLIPModel"}], r"names '\.\./elsewhere'"),
        ([{"path": "0_CLIPModel/..", "type": "a.CLIPModel"}], "names"),
        ([], "lists ''"),
        ({"a": 1}, "lists ''"),
        (["a"], "lists ''"),
    ],
    ids=str,
)  # fmt: skip
def test_a_folder_of_more_than_a_clip_is_refused(modules: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "0_CLIPModel").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path)


# Other networks.

VISUAL, TEXT = (
    {key: tensor for key, tensor in WEIGHTS["vit"].items() if key.startswith("visual.") == visual}
    for visual in (True, False)
)
OTHERS = {
    "a SigLIP, EVA or MobileCLIP of open_clip": (["visual.trunk.blocks.0.norm1.weight", "text.x"], "tower is timm's"),
    "CoCa": (["visual.proj", "text.cls_emb", "text_decoder.resblocks.0.ln_1.weight"], "a CoCa"),
    "CustomTextCLIP": ([*VISUAL, *under("text.", TEXT)], "a text tower of its own"),
    "open_clip with BERT": ([*VISUAL, "text.transformer.encoder.layer.0.x"], "text tower is transformers'"),
    "CoOp": (["prompt_learner.ctx", "prompt_learner.token_prefix"], "prompts learned for a CLIP"),
    "LoRA": (["base_model.model.visual.proj.lora_A.weight"], "LoRA adapters"),
    "DINO": (["cls_token", "blocks.0.attn.qkv.weight"], "a ViT of timm or DINO"),
    "BERT": (["bert.embeddings.word_embeddings.weight"], "a BERT"),
    "a ResNet": (["conv1.weight", "layer4.2.conv1.weight", "fc.weight"], "a ResNet without a text tower"),
    "the image side": (list(VISUAL), "the image tower of a CLIP without the other tower"),
    "the text side": (list(TEXT), "the text tower of a CLIP without the other tower"),
    "CLIPVisionModel": (["vision_model.embeddings.class_embedding"], "the image tower of a CLIP"),
    "something else": (["a", "b.c"], "no network that we know; the first is 'a'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_told_what_it_is(name: str, tmp_path: Path) -> None:
    keys, said = OTHERS[name]
    torch.save(dict.fromkeys(keys, torch.zeros(1)), tmp_path / "a.pt")
    with pytest.raises(CheckpointKeyError, match=said) as caught:
        clip.load(tmp_path / "a.pt", device="cpu")
    assert "layer1" not in str(caught.value)


@pytest.mark.parametrize("key", WEIGHTS["vit"])
def test_a_vit_that_lacks_an_entry_is_told_of_a_vits(key: str, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in WEIGHTS["vit"].items() if name != key}
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        clip.load(tmp_path / "a.pt", device="cpu")
    assert "layer1" not in str(caught.value)
    assert "ResNet" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing|is 0"):
        clip.model.build_model(weights)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"model": WEIGHTS["vit"]}, "ema": WEIGHTS["rn"]},
        {"model": {"depth": 12}, "weights": WEIGHTS["vit"]},
        {"model": WEIGHTS["rn"], "state_dict": WEIGHTS["vit"]},
        {"a": {"b": {"c": WEIGHTS["vit"]}}},
        {"state_dict": WEIGHTS["vit"], "teacher": WEIGHTS["rn"]},
    ],
    ids=lambda content: " ".join(content),
)
def test_the_usual_place_goes_first_and_another_is_found(content: object, tmp_path: Path) -> None:
    assert_read(content, tmp_path / "a.pt")
