"""The house rules that a machine can check: layers, sizes, names, and documents that say what is so."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import clip
from clip import errors

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "clip"
FILES = sorted(SOURCE.glob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 65
# The network stays in one module, as OpenAI's: users replace a class in it, and its neighbours must see that.
LONGER_FILES = {"model": 535}

# Arrows go down only. Rooms do not know each other: records go between them. ARCHITECTURE.md draws it.
LAYERS = {
    "edges": {"cli", "demo", "finding", "tuning", "interrupts", "reporter", "__main__"},
    "verbs": {
        "catalog",
        "clip",
        "decoders",
        "drawn_folder",
        "encoder",
        "export",
        "pipeline",
        "running",
        "stored",
        "texts",
        "update",
    }
    | {"verify", "rerun", "indexed", "search", "zero_shot", "contact_sheet", "fidelity", "samples"},
    "rooms": {"engine", "weights", "sources", "store", "plan", "lock"},
    "plumbing": {
        "answers",
        "archives",
        "download",
        "folders",
        "int8",
        "lists",
        "conditions",
        "nearest",
        "parts",
        "prefetch",
        "remote",
        "servers",
        "sections",
        "tables",
        "openvino_backend",
        "torch_backend",
        "cuda_backend",
    },
    "truth": {
        "whole_files",
        "crops",
        "drawing",
        "fast_pixels",
        "fold",
        "lean",
        "architecture",
        "blueprint",
        "errors",
        "installed",
        "items",
        "find_jobs",
        "jobs",
        "tune_jobs",
        "model",
        "pixels",
        "policies",
        "preprocess",
        "prompts",
        "scenes",
        "threads",
    }
    | {"restricted_pickle", "simple_tokenizer", "token_tables", "torch_archive", "layouts", "releases", "checkpoints"},
}
ORDER = list(LAYERS)
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, inside functions and type checks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "clip":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("clip."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("clip.")}
    return found


def test_every_module_has_a_layer() -> None:
    assert {path.stem for path in FILES} - {"__init__"} == set(LAYER_OF)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "__init__"], ids=lambda p: p.stem)
def test_imports_go_down_the_layers(path: Path) -> None:
    own = LAYER_OF[path.stem]
    for module in imports_of(path):
        down = ORDER.index(LAYER_OF[module]) - ORDER.index(own)
        beside = own != "rooms"
        assert down > 0 or (down == 0 and beside), f"{path.stem} ({own}) imports {module} ({LAYER_OF[module]})"


def test_no_module_is_reached_from_itself() -> None:
    graph = {path.stem: imports_of(path) for path in FILES if path.stem != "__init__"}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            module = pending.pop()
            if module not in seen:
                seen.add(module)
                pending.extend(graph[module])
        return seen

    assert [module for module in graph if module in reachable(module)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGER_FILES.get(path.stem, MAX_FILE_LINES)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", [p for p in FILES if p.stem not in ("__init__", "__main__")], ids=lambda p: p.stem)
def test_each_module_says_what_it_does_not_know(path: Path) -> None:
    assert "nothing about" in (ast.get_docstring(ast.parse(path.read_text())) or "").lower()


def test_every_exported_name_resolves_and_is_listed() -> None:
    assert clip.__all__ == sorted(clip.__all__)
    assert all(getattr(clip, name) is not None for name in clip.__all__)
    assert set(clip.__all__) <= set(dir(clip))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = clip.lod


def test_no_public_name_is_that_of_a_module_unless_it_is_the_module() -> None:
    """Importing clip.search would put the module where `clip.search` was a function."""
    for name in {path.stem for path in FILES} & set(clip.__all__):
        assert getattr(clip, name) is import_module(f"clip.{name}")


def test_every_error_is_in_the_tree_at_the_top_of_its_file() -> None:
    tree = errors.__doc__ or ""
    for name in errors.__all__:
        cls = getattr(errors, name)
        line = next(line for line in tree.splitlines() if re.search(rf"[ ─]{name}\b", line))
        builtins = [base.__name__ for base in cls.__bases__ if not issubclass(base, errors.ClipError)]
        assert cls is errors.ClipError or all(f"({name})" in line for name in builtins)
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)


def test_every_error_type_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `") for row in rows} >= set(errors.__all__) - {"ClipError"}
    assert [row for row in rows if len(row) != 5] == [], "a name, its parents, what it is about"


def test_every_command_and_flag_is_documented() -> None:
    from clip.cli import cli

    page = "".join(
        (ROOT / "docs" / name).read_text()
        for name in ("embed.md", "export.md", "inputs.md", "search.md", "sketch.md", "tune.md", "weights.md")
    )
    for name, command in cli.commands.items():
        assert f"clip {name}" in page
        flags = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert [flag for flag in flags if f"`{flag}" not in page and f"{flag} " not in page] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[?([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == clip.__version__


def test_the_readme_shows_code_by_line_15_and_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(line.startswith("```python") for line in lines[:15])
    assert len(lines) <= 150
