"""Labels and prompt templates, from arguments or from files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..errors import InputError
from ..jobs.classify import TEMPLATE

PLACEHOLDER = "{}"  # of the label, in a template
# The seven of 80 templates that OpenAI found to do better on ImageNet than all 80 together.
# openai/CLIP@d05afc4 notebooks/Prompt_Engineering_for_ImageNet.ipynb
OPENAI7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
SETS = {"openai7": OPENAI7}
MAX_SHOWN = 60  # characters of the labels that an error repeats


def split_labels(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels of several files or texts with commas, in their order. Raises: InputError for a file."""
    return tuple(label for source in sources for label in _read_source(source))


def _read_source(source: str | Path) -> tuple[str, ...]:
    if _is_file(source):
        return _read_lines(Path(source))
    return tuple(label for part in str(source).split(",") if (label := part.strip()))


def read_labels(source: str | Path | tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels of a file with one per line, of a text with commas between, or of a tuple.

    Raises:  InputError if there are fewer than two, or one appears twice, or the file cannot be read.
    """
    labels = source if isinstance(source, tuple) else _read_source(source)
    item = "`labels`" if isinstance(source, tuple) or not _is_file(source) else str(source)
    if len(labels) < 2:
        found = f"found {len(labels)} in {str(source)[:MAX_SHOWN]!r}"
        remedy = "Pass a file with one label per line, or labels with commas between."
        raise InputError("`labels`", found, "at least 2, or the name of a file", remedy)
    repeated = next((label for label, count in Counter(labels).items() if count > 1), None)
    if repeated is not None:
        raise InputError(item, f"{repeated!r} appears twice", remedy="Remove one.")
    return labels


def read_templates(single: tuple[str, ...], set_name: str | None) -> tuple[str, ...]:
    """Return single templates, or those of a set: "openai7", or a file's lines; default: "a photo of a {}".

    Raises:  InputError for a template without {}, or a file that cannot be read or is empty.
    """
    if set_name is not None and set_name not in SETS and not _is_file(set_name):
        raise InputError("`templates`", f"found {set_name!r}", f"a file or one of {list(SETS)}", "Pass one of them.")
    templates = single or (TEMPLATE,)
    if set_name is not None:
        templates = SETS[set_name] if set_name in SETS else _read_lines(Path(set_name))
    if not templates:
        raise InputError(str(set_name), "is empty", "one template per line", "Write some into it.")
    for template in templates:
        if PLACEHOLDER not in template:
            raise InputError("`template`", f"{template!r} has no {PLACEHOLDER}", remedy="Put it where the label goes.")
    return templates


def _is_file(name: str | Path) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name, or not a name at all
        return False


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(path, f"cannot be read ({exc})", "UTF-8 text", "Check the file.") from exc
    return tuple(line.strip() for line in text.splitlines() if line.strip())
