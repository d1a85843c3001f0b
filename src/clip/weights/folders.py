"""Find the configuration and the weights files in a folder, of transformers, open_clip or sentence-transformers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import CheckpointError, quote
from .configurations import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, load_json, read_json

if TYPE_CHECKING:
    from pathlib import Path

# By configuration: the names that its library gives to weights, before variant, part and ending.
STEMS = {
    OPEN_CLIP_CONFIG: ("open_clip_model", "open_clip_pytorch_model"),
    TRANSFORMERS_CONFIG: ("model", "pytorch_model"),
}
SENTENCE_MODULES, SENTENCE_FOLDER = "modules.json", "0_CLIPModel"  # of sentence-transformers
SENTENCE_TYPES = (("CLIPModel", "Transformer"), ("Normalize",))  # of the first module, and of those after it
ENDINGS = ("safetensors", "bin", "pt", "pth")
# "model.fp16-00001-of-00003.safetensors"
_WEIGHTS = re.compile(
    r"(?P<stem>[a-z_]+?)(?:\.(?P<variant>fp16|bf16|fp32))?(?:-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.(?P<ending>\w+)"
)
# "model.safetensors.index.json", and "model.safetensors.index.fp16.json" of a variant
_INDEX = re.compile(r"(?P<stem>[a-z_]+)\.(?P<ending>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")


def find_clip_folder(folder: Path) -> Path:
    """Return the folder in which sentence-transformers keeps the CLIP of a model; any other folder as it is.

    Raises:  CheckpointError as `name_clip_folder`, and where that folder is not there.
    """
    modules = folder / SENTENCE_MODULES
    inner = name_clip_folder(modules) if modules.is_file() else SENTENCE_FOLDER
    if modules.is_file() and not (folder / inner).is_dir():
        raise CheckpointError(folder, f"{SENTENCE_MODULES} names {quote(inner)}", "a folder in it", "Fetch it again.")
    return folder / inner if (folder / inner).is_dir() else folder


def name_clip_folder(modules: Path) -> str:
    """Return the folder of the CLIP that a modules.json lists.

    Raises:  CheckpointError for a model of several networks, whose vectors are not those of its CLIP.
    """
    content = load_json(modules)
    rows = content if isinstance(content, list) else []
    types = [str(row.get("type")).rpartition(".")[2] for row in rows if isinstance(row, dict)]
    first, later = SENTENCE_TYPES
    if not types or len(types) != len(rows) or types[0] not in first or not set(types[1:]) <= set(later):
        found = f"{SENTENCE_MODULES} lists {quote(', '.join(types))}"
        remedy = "Use sentence-transformers: its vectors are not those of a CLIP."
        raise CheckpointError(modules.parent, found, "a CLIPModel, with Normalize at most", remedy)
    path = rows[0].get("path") or "."
    if not isinstance(path, str) or not re.fullmatch(r"\.|[\w-][\w.-]*", path):
        found = f"{SENTENCE_MODULES} names {quote(str(path))}"
        raise CheckpointError(modules.parent, found, "a folder in it", "Fetch it again.")
    return path


def find_weights(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder with a configuration: one, or its parts.

    Whole files go before parts, safetensors before pickles, full precision before fp16; the only weights file of any
    other name comes last.

    Raises:  CheckpointError where there are none, or parts are missing.
    """
    configs = [config for config in STEMS if (folder / config).is_file()]
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for config in configs:
        ranked = [(rank, file) for file in files if (rank := _rank(file.name, STEMS[config])) is not None]
        if ranked:
            return _find_parts(min(ranked)[1], files)
    others = [file for file in files if file.suffix.lstrip(".") in ENDINGS]
    if configs and len(others) == 1:
        return others
    found = f"a folder without {OPEN_CLIP_CONFIG} or {TRANSFORMERS_CONFIG} and its weights"
    raise CheckpointError(folder, found, "that of an open_clip model or of a CLIPModel", "Pass one, or a weights file.")


def _rank(name: str, stems: tuple[str, ...]) -> tuple[object, ...] | None:
    """Return what orders the weights files of a folder, the best first; None for a file that is none."""
    index = _INDEX.fullmatch(name)
    match = index or _WEIGHTS.fullmatch(name)
    if match is None or match["stem"] not in stems or match["ending"] not in ENDINGS:
        return None
    kind = 1 if index else 0 if match["part"] is None else 2
    return match["variant"] is not None, stems.index(match["stem"]), kind, name


def list_parts(index: Path) -> list[str]:
    """Return the names of the files that an index lists. Raises: CheckpointError for other names."""
    content = read_json(index).get("weight_map")
    names = list(content.values()) if isinstance(content, dict) else []
    if not names or any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise CheckpointError(index, "names no files of its folder", "a weight_map", "Fetch it again.")
    return sorted(set(names))


def _find_parts(file: Path, files: list[Path]) -> list[Path]:
    if file.suffix == ".json":
        wanted = list_parts(file)
    elif (match := _WEIGHTS.fullmatch(file.name)) and match["part"]:
        start, end = file.name[: match.start("part")], file.name[match.end("part") :]
        wanted = [f"{start}{part:05}{end}" for part in range(1, int(match["parts"]) + 1)]
    else:
        return [file]
    missing = sorted(set(wanted) - {other.name for other in files})
    if missing:
        found = f"{len(missing)} of its {len(wanted)} parts are missing, such as {quote(missing[0])}"
        raise CheckpointError(file.parent, found, "all of them", "Fetch them.")
    return [file.with_name(name) for name in wanted]
