"""The package as it is installed: what the wheel holds, and that it works from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kit import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_its_table_and_its_types_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (
        path for path in (ROOT / "src" / "clip").rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    )
    package = {f"clip/{path.relative_to(ROOT / 'src' / 'clip').as_posix()}" for path in files}
    assert {"clip/merges.bin", "clip/py.typed", "clip/weights/sketch.safetensors"} <= package
    assert wheel.stat().st_size < 10_000_000
    assert {name for name in names if ".dist-info/" not in name} == package


def test_the_installed_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    code = (
        "import clip; print(clip.__file__, clip.tokenize('a diagram')[0, :4].tolist()); "
        "print(clip.Encoder('sketch').encode_text('a red star').shape)"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert ran.stdout.split(" ", 1) == [
        str(target / "clip" / "__init__.py"),
        "[49406, 320, 22697, 49407]\ntorch.Size([1, 256])\n",
    ]
    helped = subprocess.run(
        [str(target / "bin" / "clip"), "--version"], check=True, capture_output=True, text=True, env=environment
    )
    assert helped.stdout == "clip-turbo 0.1.0\n"
    command = [str(target / "bin" / "clip"), "demo", "--scenes", "50"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "demo-out" / "hits.png").is_file()
