"""The house rules that a machine can check: layers, sizes, names, and documents that say what is so."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from kit import ROOT

import clip
from clip import errors

SOURCE = ROOT / "src" / "clip"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [path for path in FILES if path.stem not in ("__init__", "__main__")]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 65
# The network stays in one module, as OpenAI's: users replace a class in it, and its neighbours must see that.
LONGER_FILES = {"model": 535}

GROUND = {
    "vectors",
    "errors",
    "budgets",
    "parallel",
    "atomic_files",
    "object_paths",
    "object_stores",
    "own_files",
    "records",
    "retry",
    "simple_tokenizer",
    "tokenizer_file",
    "foreign_distribution",
    "lazy_names",
    "memory",
}
# Each room imports rooms of the floors below its own, and itself. ARCHITECTURE.md draws it.
FLOORS = (
    {"ground"},
    {"jobs", "network"},
    {"images", "text", "sources.remote"},
    {"sources", "store", "demo"},
    {"engine"},
    {"fast"},
    {"model"},
    {"weights"},
    {"clip"},
    {"encoder"},
    {"batch", "health"},
    {"retrieval", "cluster"},
    {"serve"},
    {"cli"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Who alone may import a library; a test below looks at each.
TORCH_FREE = {"ground", "jobs", "images", "sources", "sources.remote", "store"}
WITH_TORCH = {"images.preprocess", "images.steps", "images.fast"}  # the last only when it runs
NETWORK = {"aiohttp", "fsspec", "http", "httpx", "huggingface_hub", "obstore", "requests", "urllib"}
SERVER = {"h11", "prometheus_client", "python_multipart", "starlette", "uvicorn"}  # which the extra `serve` brings


def dotted(path: Path) -> str:
    """A file's module below `clip`, of a room's `__init__` the room."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def room_of(module: str) -> str:
    if module.startswith("sources.remote"):
        return "sources.remote"
    first = module.partition(".")[0]
    return "ground" if first in GROUND else "cli" if first == "__main__" else first


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Modules of ours that a file imports, inside functions and type checks too; and packages of others."""
    package = path.relative_to(SOURCE).parent.parts
    ours: set[str] = set()
    others: set[str] = set()
    known = {dotted(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            module = ".".join(filter(None, base))
            whole = {".".join(filter(None, (module, alias.name))) for alias in node.names} & known
            ours |= whole or ({module} - {""})
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
    return ours, others


def test_every_room_has_a_floor_and_says_what_it_may_import() -> None:
    rooms = {room_of(dotted(path)) for path in FILES if dotted(path)}
    assert rooms == set(FLOOR_OF)
    for path in SOURCE.rglob("*/__init__.py"):
        assert "may import" in (ast.get_docstring(ast.parse(path.read_text())) or ""), path


@pytest.mark.parametrize("path", [p for p in FILES if dotted(p)], ids=dotted)
def test_imports_go_down_the_floors(path: Path) -> None:
    own = room_of(dotted(path))
    ours, others = imports_of(path)
    assert "clip" not in others, "imports are relative: the package may be installed below another one"
    for module in ours:
        room = room_of(module)
        assert room == own or FLOOR_OF[room] < FLOOR_OF[own], f"{dotted(path)} imports {module}"
    if own in TORCH_FREE and dotted(path) not in WITH_TORCH and dotted(path) != "records":
        assert "torch" not in others
    assert own == "cli" or "click" not in others
    with_network = own in ("weights", "sources.remote", "serve") or dotted(path) in ("object_paths", "object_stores")
    assert with_network or not (others & NETWORK)
    assert own == "serve" or not (others & SERVER)
    assert own == "cluster" or "ray" not in others


def test_no_module_is_reached_from_itself() -> None:
    graph = {dotted(path): imports_of(path)[0] for path in FILES if dotted(path)}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            module = pending.pop()
            if module not in seen:
                seen.add(module)
                pending.extend(graph.get(module, ()))
        return seen

    assert [module for module in graph if module in reachable(module)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: dotted(p) or "clip")
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGER_FILES.get(dotted(path), MAX_FILE_LINES)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: dotted(p) or "clip")
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_tests_stand_in_the_rooms_of_what_they_test() -> None:
    rooms = {path.parent.name for path in SOURCE.rglob("*.py") if path.parent != SOURCE}
    for kind in ("unit", "fault"):
        assert {path.name for path in (ROOT / "tests" / kind).iterdir() if path.is_dir()} - {"__pycache__"} <= rooms


def test_every_exported_name_resolves_and_is_listed() -> None:
    public = set(clip._PUBLIC)
    assert clip.__all__ == sorted(clip.__all__)
    assert set(clip.__all__) <= public <= set(dir(clip))
    assert all(getattr(clip, name) is not None for name in public)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = clip.lod


def test_no_public_name_is_that_of_a_module_unless_it_is_the_module() -> None:
    """Importing clip.search would put the module where `clip.search` was a function."""
    for name in {dotted(path) for path in FILES} & set(clip._PUBLIC):
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
    from clip.cli.main import cli

    page = "".join(
        (ROOT / "docs" / name).read_text()
        for name in (
            "embed.md",
            "export.md",
            "inputs.md",
            "install.md",
            "scale.md",
            "search.md",
            "serve.md",
            "sketch.md",
            "tune.md",
            "weights.md",
        )
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
