"""Write what runs by name, from the catalog: the sentence in README.md and the table in docs/weights.md.

python tools/make_model_lists.py
"""

import re
from dataclasses import dataclass
from pathlib import Path

from clip.weights.published import PUBLISHED, RESTRICTED
from clip.weights.releases import IMAGENET, LICENCE, RELEASES

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "weights.md")
SENTENCE = re.compile(r"(<!-- models -->).*?(<!-- /models -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- model table -->\n).*?(<!-- /model table -->)", re.DOTALL)
# Families of the models of others, the first pattern that a name or its repository matches.
FAMILIES = {
    "LAION and DataComp": r"laion/",
    "DFN": r"apple/",
    "SigLIP 2": r"SigLIP2",
    "SigLIP": r"SigLIP",
    "PE-Core": r"PE-Core",
}


@dataclass(frozen=True)
class Model:
    """A model of the catalog."""

    name: str
    licence: str
    imagenet: float | None


def list_families() -> dict[str, list[Model]]:
    """Return the models of each family, in the catalog's order. Raises: KeyError for a model that is of none."""
    families = {"OpenAI's": [Model(name, LICENCE, IMAGENET[name]) for name in RELEASES]}
    for name, model in PUBLISHED.items():
        text = f"{name} {model.repository}"
        family = {re.search(pattern, text) is not None: one for one, pattern in reversed(FAMILIES.items())}[True]
        families.setdefault(family, []).append(Model(name, model.licence, model.imagenet))
    return families


def write_sentence() -> str:
    """Return how many models of each family run, with those of a licence that is restricted marked."""
    parts: list[str] = []
    for family, models in list_families().items():
        restriction = RESTRICTED.get(models[0].licence)
        parts.append(f"{family} ({len(models)}{f', {restriction}' if restriction else ''})")
    return f"{', '.join(parts)}."


def write_table() -> str:
    """Return the table of families: names, accuracy and licence."""
    rows = ["| family | names | ImageNet, zero-shot | licence |\n|---|---|---|---|\n"]
    for family, models in list_families().items():
        names = ", ".join(f"`{model.name}`" for model in models)
        found = [model.imagenet for model in models if model.imagenet is not None]
        licence = models[0].licence
        shown = f"{licence} ({RESTRICTED[licence]})" if licence in RESTRICTED else licence
        rows.append(f"| {family} | {names} | {min(found):.1f} to {max(found):.1f} % | {shown} |\n")
    return "".join(rows)


def update_lists(page: str) -> str:
    """Return a page with its lists as they have to be."""
    page = SENTENCE.sub(lambda match: f"{match[1]}{write_sentence()}{match[2]}", page)
    return TABLE.sub(lambda match: f"{match[1]}{write_table()}{match[2]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(update_lists(path.read_text()))
