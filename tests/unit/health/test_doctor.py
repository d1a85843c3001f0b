"""`clip doctor`: what it says of a machine that is well, and of ones that are not."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from kit.in_process import Run

from clip.errors import DeviceError
from clip.health import doctor
from clip.weights.releases import RELEASES


def test_a_machine_that_is_well_has_no_problems_and_all_that_vectors_depend_on(run: Run, tmp_path: Path) -> None:
    code, out, err = run("doctor", "--json", "--download-root", str(tmp_path))
    report = json.loads(out)
    assert (code, err, report["problems"]) == (0, "", [])
    assert report["versions"].keys() >= {"clip-turbo", "python", "torch", "numpy", "pillow", "ftfy", "regex"}
    assert all(report["versions"].values())
    assert report["devices"][0]["precisions"]
    assert (report["cache"]["folder"], report["cache"]["released"]) == (str(tmp_path), {})
    text = run("doctor", "--download-root", str(tmp_path))[1]
    assert text.splitlines()[-1] == "problems: none"
    assert str(tmp_path) in text


def test_every_extra_of_the_package_is_listed_with_its_libraries() -> None:
    import re

    from kit import ROOT

    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n\n")[0]
    stated = dict(re.findall(r"^(\w+) = \[(.*)\]$", section, re.MULTILINE))
    stated.pop("all")
    assert doctor.EXTRAS.keys() == stated.keys()
    for name, (libraries, _) in doctor.EXTRAS.items():
        named = {re.split(r"[>\[]", library)[0] for library in re.findall(r'"([^"]+)"', stated[name])}
        assert named <= set(libraries)


def test_what_a_machine_lacks_and_what_is_broken_is_said_once_each(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = doctor.find_version
    gone = {"tokenizers", "pyarrow"}
    monkeypatch.setattr(doctor, "find_version", lambda name: None if name in gone else find(name))

    def broken() -> None:
        raise DeviceError("device 'cuda'", "the driver is too old")

    monkeypatch.setattr(doctor, "_list_devices", broken)
    monkeypatch.setattr(doctor, "IMPORTED", {"numpy": "clip.none_of_this_name"})
    (tmp_path / "ViT-B-32.pt").write_bytes(b"cut")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    report = doctor.examine(str(tmp_path))
    assert [row.lacks for row in report.extras if row.name == "siglip"] == ["no texts for SigLIP and SigLIP 2"]
    for said in ("pyarrow is not installed", "numpy cannot be imported (ModuleNotFoundError", "driver is too old",
                 "ViT-B-32.pt has another size than OpenAI's"):  # fmt: skip
        assert sum(said in problem for problem in report.problems) == 1
    assert "secret" not in json.dumps(asdict(report))
    code, out, _ = run("doctor", "--download-root", str(tmp_path))
    assert code == 1
    assert "problems" in out.splitlines()
    assert "siglip              tokenizers -; without it: no texts" in out


def test_weights_that_are_here_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    (tmp_path / "ViT-B-32.pt").write_bytes(b"four")
    monkeypatch.setitem(RELEASES, "ViT-B/32", replace(RELEASES["ViT-B/32"], size_bytes=4))
    assert doctor.examine(str(tmp_path)).cache["released"] == {"ViT-B/32": str(tmp_path / "ViT-B-32.pt")}
