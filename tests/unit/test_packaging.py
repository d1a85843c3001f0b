"""The package where programs put it: below another package, under another name, in a clone, under another's files."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kit import ROOT
from kit.programs import command

PACKAGE = ROOT / "src" / "clip"
OPENAIS_INIT = "from .clip import *\n"  # the `__init__` of every copy of OpenAI's package
OPENAIS_MODULE = "def available_models(): ...\ndef load(): ...\ndef tokenize(): ...\n"


def run(arguments: list[str], path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with the package on the path and the installed one out of sight."""
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copy_package(to: Path) -> None:
    shutil.copytree(PACKAGE, to, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("name", ["vendored.clip", "openai_clip"])
def test_the_package_works_below_another_and_under_another_name(name: str, tmp_path: Path) -> None:
    copy_package(tmp_path / name.replace(".", "/"))
    done = run(command("run_as_another_package", name), tmp_path, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"(1, 256) 1 {name} []"), done.stderr


@pytest.mark.parametrize(
    ("path", "program"),
    [
        (".", "from CLIP import clip; print(clip.available_models()[0], clip.__name__)"),
        ("CLIP", "import clip; print(clip.available_models()[0], clip.__name__)"),
    ],
    ids=["from CLIP import clip", "sys.path.append('CLIP')"],
)
def test_a_clone_named_clip_is_imported_as_openais_is(path: str, program: str, tmp_path: Path) -> None:
    """As notebooks do after `git clone .../CLIP`, without installing it."""
    (tmp_path / "CLIP").symlink_to(ROOT)
    done = run([sys.executable, "-c", program], tmp_path / path, tmp_path)
    assert done.stdout.strip() == f"RN50 {'CLIP.clip' if path == '.' else 'clip'}", done.stderr


@pytest.mark.parametrize("module", ["encoder", "cli.main", "batch.embed"])
def test_files_put_over_ours_are_noticed_by_what_is_left(module: str, tmp_path: Path) -> None:
    copy_package(tmp_path / "clip")
    (tmp_path / "clip" / "__init__.py").write_text(OPENAIS_INIT)
    (tmp_path / "clip" / "clip.py").write_text(OPENAIS_MODULE)
    done = run([sys.executable, "-c", f"import clip.{module}"], tmp_path, tmp_path)
    assert "ForeignPackageError" in done.stderr.splitlines()[-1], done.stderr
    assert "pip install --force-reinstall --no-deps clip-turbo" in done.stderr.splitlines()[-1]


def test_the_container_has_what_the_package_has() -> None:
    """No Docker runs here: each word of the file that is ours is compared with the package."""
    from clip.cli.main import cli

    steps = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r'"/source\[([a-z0-9,]+)\]"', steps)
    assert extras
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[0].split(",")) <= set(project["optional-dependencies"])
    verb = json.loads(re.findall(r"^CMD (.+)$", steps, re.MULTILINE)[0])[0]
    flags = {option.envvar for option in cli.commands[verb].params}
    compose = (ROOT / "compose.yaml").read_text()
    named = re.findall(r"\bCLIP_[A-Z_]+(?==)", steps) + re.findall(r"\bCLIP_[A-Z_]+(?=:)", compose)
    assert named
    assert set(named) <= flags
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", steps, re.MULTILINE)[0])[0] in project["scripts"]
    for path in re.findall(r"127\.0\.0\.1:8000(/[a-z/]+)", steps):
        assert path == "/health/live"
