"""Tell whether weights that come without a configuration are of OpenAI's network.

Shapes do not show the activation, the number of heads, the pooling or the mask of the text side. OpenAI's network is
assumed only where nothing in the file, in its name or in its folder points elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CheckpointError, quote
from .architectures import find_relative
from .configurations import TRANSFORMERS_CONFIG, read_json
from .restricted_pickle import Inert, Name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..network.records import Architecture
    from .torch_file import ScriptState

NAME_IT = (
    "Pass `architecture`, such as ViT-H-14 of open_clip, ViT-B/32 of OpenAI or the path of a configuration; "
    "or put its configuration beside it."
)
# Words of open_clip, and of the data sets that it was trained on: OpenAI's models and their descendants have neither.
_WORDS = re.compile(
    r"open_?clip|quick_?gelu|laion|datacomp|commonpool|metaclip|mobileclip|yfcc|cc12m|(?<![a-z])(?:dfn[25]b|webli)",
    re.I,
)
MAX_TEXTS = 100_000  # strings beside the weights that are looked at
TRAINING_KEYS = frozenset({"state_dict", "name"})  # of a checkpoint of open_clip's training script, and of no other
TRAINING_LOG = "params.txt"  # which that script writes into the folder above its checkpoints
OTHER_CONFIG_KEYS = frozenset({"model_type", "architectures", "architecture", "model_cfg", "vision_cfg"})


class Stated(Protocol):
    """What every family's configuration has."""

    @property
    def origin(self) -> str:
        """The file or the name that says so, for errors."""
        ...

    @property
    def network(self) -> str:
        """What it describes, for errors."""
        ...


def refuse_network(named: Stated, own: str) -> CheckpointError:
    """Return the error for a configuration of another family than the weights are of."""
    found = f"{named.origin} describes {named.network}, and the weights are of {own}"
    return CheckpointError("weights", found, f"a configuration of {own}", "Pass that of these weights.")


def find_sign(
    content: object, state_dict: object, metadata: Mapping[str, str], file: Path, architecture: Architecture
) -> str | None:
    """Return what points to another network than OpenAI's, for an error; None where nothing does."""
    if isinstance(content, dict) and content is not state_dict and content.keys() >= TRAINING_KEYS:
        return f"a checkpoint of open_clip's training script, with the name {quote(str(content['name']))}"
    if word := _find_word(_list_texts([content, metadata], state_dict)):
        return f"weights that have {word} beside them"
    if word := _find_word([file.name, file.absolute().parent.name]):
        return f"weights with {word} in the name"
    if file.absolute().parent.name == "checkpoints" and (file.absolute().parent.parent / TRAINING_LOG).is_file():
        return f"weights in a folder of open_clip's training script, with {TRAINING_LOG}"
    if relative := find_relative(architecture):
        return f"weights with the shapes of open_clip's {relative}, which no model of OpenAI's has"
    return _describe_config(file.with_name(TRANSFORMERS_CONFIG))


def find_script_sign(archive: ScriptState) -> str | None:
    """Return what in the code of a TorchScript archive points to another network than OpenAI's."""
    if word := _find_word(name for name in archive.classes if not name.endswith("QuickGELU")):
        return f"a TorchScript archive with the class {word}"
    return "a TorchScript archive that calls GELU" if archive.uses_gelu else None


def refuse_origin(sign: str) -> CheckpointError:
    """Return the error for weights whose activation and heads are not known."""
    expected = "their configuration, as shapes do not show activation and heads"
    return CheckpointError("weights", sign, expected, NAME_IT)


def _find_word(texts: Any) -> str | None:
    return next((quote(text) for text in texts if _WORDS.search(text)), None)


def _list_texts(values: list[object], state_dict: object) -> Iterator[str]:
    """Yield the keys, strings and class names among values, but for those in the state dict."""
    pending, seen = list(values), {id(state_dict)}
    for count, value in enumerate(pending):  # which grows meanwhile
        if count > MAX_TEXTS:
            return
        if isinstance(value, str):
            yield value
        elif isinstance(value, Name):
            yield value.full
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                pending += [*value.keys(), *value.values()]
            elif isinstance(value, Inert):
                pending += [value.type_name, *value.parts]
            elif isinstance(value, (list, tuple)):
                pending += value


def _describe_config(file: Path) -> str | None:
    """Return what a config.json beside the weights is of, where it is of a model; any other is not about them."""
    try:
        config = read_json(file) if file.is_file() else {}
    except (CheckpointError, OSError):
        return None
    if not OTHER_CONFIG_KEYS & config.keys():
        return None
    return f"weights beside the {file.name} of another model"
