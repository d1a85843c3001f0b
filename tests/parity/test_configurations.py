"""Every field of transformers' configurations of a CLIP: read as transformers reads it, compared, or of no effect."""

import ast
import dataclasses
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from clip.clip import load_model
from clip.errors import CheckpointError
from clip.weights import configurations
from clip.weights.checkpoints import read_checkpoint

TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59}
VISION = TOWER | {"image_size": 32, "patch_size": 16}
BASE: dict[str, Any] = {"model_type": "clip", "projection_dim": 24, "text_config": TEXT, "vision_config": VISION}

READ, REFUSED = "read", "refused or compared with the weights"
# Fields of all three, which change no vector.
LIBRARY = {
    "transformers_version": ("names the version that wrote the file", "4.0.0"),
    "architectures": ("names the class; the entries show it", ["CLIPModel"]),
    "output_hidden_states": ("asks for more results beside the vector", True),
    "output_attentions": ("the same", True),
    "return_dict": ("says in which container results come", False),
    "dtype": ("that of the weights in the file counts", "float32"),
    "chunk_size_feed_forward": ("cuts the work of an MLP into pieces, of models that do so", 2),
    "is_encoder_decoder": ("for models with a decoder", True),
    "id2label": ("names of classes of a classifier", {"0": "a", "1": "b", "2": "c"}),
    "label2id": ("the same", {"a": 0}),
    "problem_type": ("which loss a classifier has", "regression"),
    "_name_or_path": ("where it was loaded from", "openai/clip-vit-base-patch32"),
}
TRAINING = {
    "initializer_factor": ("scales the weights that training starts from", 2.0),
    "initializer_range": ("the same", 0.5),
    "attention_dropout": ("acts in training only", 0.5),
}
SHAPES = {
    "hidden_size": (REFUSED, 128, 2**31), "intermediate_size": (REFUSED, 128, 2**31 - 1),
    "num_hidden_layers": (REFUSED, 1, 3, 2147483648, 0, True, 2.0),
    "num_attention_heads": (READ, 1, 4), "layer_norm_eps": (REFUSED, 1e-6, 0.1, None),
    "hidden_act": (REFUSED, "relu", "gelu_new", "gelu", None),  # of one tower alone; of both it is read, below
    "projection_dim": (REFUSED, 25, 1024, "24"),
}  # fmt: skip
TABLES: dict[str, tuple[type, dict[str, tuple[Any, ...]]]] = {
    "text_config": (
        CLIPTextConfig,
        LIBRARY | TRAINING | SHAPES | {
            "model_type": ("that of the whole is read", "other"),
            "vocab_size": (REFUSED, 61, 2**31 - 1), "max_position_embeddings": (REFUSED, 13, 2**40),
            "eos_token_id": (REFUSED, 3, 49407, None, [59]),
            "pad_token_id": ("for the tokenizer; what follows the end is masked", 7),
            "bos_token_id": ("for the tokenizer, whose first token is part of the vocabulary", 7),
        },
    ),
    "vision_config": (
        CLIPVisionConfig,
        LIBRARY | TRAINING | SHAPES | {
            "model_type": ("that of the whole is read", "other"),
            "num_channels": (REFUSED, 1, 4), "image_size": (REFUSED, 64, [32, 64], 2**31 - 1),
            "patch_size": (REFUSED, 8, [16, 8], 2**31 - 1),
        },
    ),
    "": (
        CLIPConfig,
        LIBRARY | {
            "initializer_factor": TRAINING["initializer_factor"],
            "model_type": (REFUSED, "siglip", "chinese_clip", None),
            "text_config": (READ, TEXT | {"num_attention_heads": 4}),
            "vision_config": (READ, VISION | {"num_attention_heads": 4}),
            "projection_dim": (REFUSED, 25, 512, 2**31, None),
            "logit_scale_init_value": ("replaced by the weight", 1.0),
        },
    ),
}  # fmt: skip


@cache
def their_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig.from_dict(json.loads(json.dumps(BASE))))
    return {key: torch.randn_like(tensor) * 0.2 for key, tensor in model.state_dict().items()}


@cache
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(1, 58, (3, 12))
    tokens[:, 8] = 59
    return torch.randn(2, 3, 32, 32), tokens


def their_features(config: dict[str, Any]) -> list[torch.Tensor] | None:
    """Features of transformers; None where it does not take the configuration, or not for these weights."""
    images, tokens = inputs()
    try:
        model = CLIPModel(CLIPConfig.from_dict(json.loads(json.dumps(config)))).eval()
        model.load_state_dict(their_weights())
        with torch.no_grad():
            found: list[Any] = [model.get_image_features(images), model.get_text_features(tokens)]
    except Exception:  # noqa: BLE001  whatever their own checks raise
        return None
    return [one if isinstance(one, torch.Tensor) else one[1] for one in found]


@cache
def base_features() -> list[torch.Tensor] | None:
    return their_features(BASE)


def our_features(config: dict[str, Any], folder: Path) -> list[torch.Tensor] | None:
    """Our features; None where the configuration is refused."""
    save_file(their_weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = load_model(read_checkpoint(folder), torch.device("cpu"))
    except CheckpointError as error:
        assert str(error).startswith(f"{folder}: ")
        assert len(str(error)) < 500 + len(str(folder))
        return None
    images, tokens = inputs()
    with torch.no_grad():
        return [model.encode_image(images), model.encode_text(tokens)]


def same(found: list[torch.Tensor] | None, wanted: list[torch.Tensor] | None) -> bool:
    return found is not None and wanted is not None and all(map(torch.allclose, found, wanted, [1e-4] * 2, [1e-4] * 2))


def with_field(place: str, field: str, value: object) -> dict[str, Any]:
    return BASE | ({place: BASE[place] | {field: value}} if place else {field: value})


CASES = [
    (place, field, kind, value)
    for place, (_, table) in TABLES.items()
    for field, (kind, *values) in table.items()
    for value in values
]


@pytest.mark.parametrize("place", TABLES)
def test_every_field_of_transformers_is_in_the_table(place: str) -> None:
    cls, table = TABLES[place]
    fields = {field.name for field in dataclasses.fields(cls)} | set(cls().to_dict())
    assert fields <= table.keys()


@pytest.mark.parametrize(("place", "field", "kind", "value"), CASES, ids=lambda value: str(value)[:20])
def test_a_field_is_read_as_transformers_reads_it_or_refused(
    place: str, field: str, kind: str, value: object, tmp_path: Path
) -> None:
    config = with_field(place, field, value)
    ours = our_features(config, tmp_path)
    if kind == REFUSED:
        assert ours is None
        return
    base, theirs = base_features(), their_features(config)  # whose sizes are never large: they would be built
    assert same(ours, theirs) or (theirs is None and same(ours, base))
    assert same(ours, base) == (kind != READ)


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        BASE | {"text_config": None, "text_config_dict": TEXT, "vision_config": {}, "vision_config_dict": VISION},
        {"model_type": "clip", "projection_dim": 24, "text_config_dict": TEXT, "vision_config_dict": VISION},
        BASE | {"text_config_dict": TEXT | {"num_attention_heads": 4}},
        BASE | {"text_config_dict": {"num_attention_heads": 4}},  # whose other values are then the library's
        BASE | {"vision_config_dict": VISION | {"num_attention_heads": 1}},
        BASE | {side: BASE[side] | {"hidden_act": "gelu"} for side in ("text_config", "vision_config")},
        BASE | {f"{side}_dict": BASE[side] | {"hidden_act": "gelu"} for side in ("text_config", "vision_config")},
        with_field("text_config", "eos_token_id", 2),
        with_field("text_config", "projection_dim", 24),
        with_field("text_config", "projection_dim", 512),
    ],
    ids=str,
)
def test_a_setting_counts_wherever_transformers_looks_for_it(config: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = their_features(config), our_features(config, tmp_path)
    assert same(ours, theirs) or (ours, theirs) == (None, None)


@pytest.mark.parametrize(
    "config",
    [
        BASE | {"hidden_act": "gelu"},
        BASE | {"eos_token_id": 3},
        BASE | {"text_config": [1]},
        BASE | {"text_config_dict": "a"},
    ],
    ids=str,
)
def test_a_setting_in_a_place_where_nothing_reads_it_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    assert our_features(config, tmp_path) is None


@pytest.mark.parametrize(("field", "side"), [("image_size", 32), ("patch_size", 16)])
def test_a_square_may_be_given_by_two_sides(field: str, side: int, tmp_path: Path) -> None:
    """transformers allows it in the configuration, though its CLIPModel then fails."""
    assert same(our_features(with_field("vision_config", field, [side, side]), tmp_path), base_features())


def test_every_setting_of_open_clip_is_in_a_table() -> None:
    """Its module needs torchvision, so its source is read."""
    specification = importlib.util.find_spec("open_clip")
    if specification is None or specification.origin is None:
        pytest.skip("open_clip_torch is not installed")
    folder = Path(specification.origin).parent
    settings: dict[str, set[str]] = {}
    for name in ("model.py", "transform.py"):
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ClassDef):
                fields = [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]  # type: ignore[union-attr]
                settings[node.name] = set(fields)
    idle = configurations.OPEN_CLIP_IDLE
    assert settings["CLIPVisionCfg"] <= {
        *configurations.OPEN_CLIP_VISION, *configurations.OPEN_CLIP_VISION_READ, *idle
    }  # fmt: skip
    assert settings["CLIPTextCfg"] <= {*configurations.OPEN_CLIP_TEXT, *configurations.OPEN_CLIP_TEXT_READ, *idle}
    assert settings["PreprocessCfg"] <= {
        *configurations.OPEN_CLIP_PREPROCESS, *configurations.OPEN_CLIP_PREPROCESS_READ
    }  # fmt: skip
