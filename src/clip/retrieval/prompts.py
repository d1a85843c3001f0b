"""Labels and the sentences they are put into, from the command line or from files. Knows nothing about models."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..jobs.classify import TEMPLATE

PLACE = "{}"  # where the label goes
# The seven of 80 templates that OpenAI found to do better on ImageNet than all of them together.
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
MAX_SHOWN = 60  # characters of what was given, in an error


def read_labels(given: str | Path | tuple[str, ...]) -> tuple[str, ...]:
    """Labels from a file, a line each, or from a text with commas between; or as they are.

    Raises:  InputError where there are fewer than two, or one stands twice, or the file cannot be read.
    """
    if isinstance(given, tuple):
        labels, where = given, "labels"
    elif _is_file(given):
        labels, where = _lines(Path(given)), str(given)
    else:
        labels, where = tuple(label for part in str(given).split(",") if (label := part.strip())), "labels"
    if len(labels) < 2:
        raise InputError(
            f"labels {str(given)[:MAX_SHOWN]!r}",
            f"found {len(labels)}",
            "at least 2, and no such file",
            "Pass a file with a label a line, or labels with commas between.",
        )
    repeated = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if len(set(labels)) < len(labels):
        raise InputError(
            where,
            f"label {repeated!r} stands twice",
            "each once",
            "Remove one.",
        )
    return labels


def read_templates(single: tuple[str, ...], chosen: str | None) -> tuple[str, ...]:
    """Templates as they are given, or those of a set: "openai7", or a file's lines. "a photo of a {}" without.

    Raises:  InputError for one without {}, or a file that cannot be read or has none.
    """
    if chosen is not None and chosen not in SETS and not _is_file(chosen):
        raise InputError(
            f"templates {chosen!r}",
            "no such file",
            f"one, or one of {list(SETS)}",
            "Pass one.",
        )
    templates = single or (TEMPLATE,)
    if chosen is not None:
        templates = SETS[chosen] if chosen in SETS else _lines(Path(chosen))
    if not templates:
        raise InputError(
            f"templates {chosen!r}",
            "an empty file",
            "a template a line",
            "Write some.",
        )
    for template in templates:
        if PLACE not in template:
            raise InputError(
                f"template {template!r}",
                f"found no {PLACE}",
                "it where the label goes",
                "Put it in.",
            )
    return templates


def _is_file(given: str | Path) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or none
        return False


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(
            path,
            f"cannot be read ({exc})",
            "UTF-8, a line each",
            "Check the file.",
        ) from exc
    return tuple(line.strip() for line in text.splitlines() if line.strip())
