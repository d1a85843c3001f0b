"""docs/scale.md: each block parses, and so does each command of ours in it."""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from kit import ROOT

from clip.cli.main import cli
from clip.jobs.part import parse_part

PAGE = (ROOT / "docs" / "scale.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TASK = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_ARRAY_TASK_MIN": "0"}


def find_commands(kind: str, text: str) -> Iterator[list[str]]:
    """Yield the words of each command of ours in a block."""
    if kind == "bash":
        for line in text.splitlines():
            words = shlex.split(line.strip().removesuffix("&"), comments=True)
            if "clip" in words:
                words = words[words.index("clip") :]
                yield words[: words.index(":::")] if ":::" in words else words
    elif kind == "yaml":
        for container in yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]:
            yield ["clip", *container["args"]]
    else:
        yield json.loads(text)["containerOverrides"]["command"]


COMMANDS = [words for kind, text in BLOCKS for words in find_commands(kind, text)]


def test_the_page_has_a_block_for_each_way_to_start_parts() -> None:
    assert [kind for kind, _ in BLOCKS].count("bash") >= 4
    assert {"yaml", "json"} <= {kind for kind, _ in BLOCKS}
    assert len(COMMANDS) >= len(BLOCKS)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "bash"])
def test_the_shell_can_read_its_blocks(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_has_options_that_there_are(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    words = [re.sub(r"\{\}|\$i\b", "3", word) for word in words]
    command = cli.commands[words[1]]
    context = command.make_context(words[1], words[2:], help_option_names=["-h", "--help"])
    if words[1] == "embed":
        assert parse_part(context.params["part"]).index == 3


def test_the_indexed_job_and_the_array_have_as_many_parts_as_they_say() -> None:
    job = yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml"))["spec"]
    assert job["completionMode"] == "Indexed"
    assert f"auto/{job['completions']}" in job["template"]["spec"]["containers"][0]["args"]


def read_row(name: str) -> list[float]:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name}"))
    return [float(cell.replace(",", "")) for cell in row.split("|")[2:-1]]


def test_hours_machines_and_money_follow_from_the_rates() -> None:
    rates = read_row("images/s")
    hours = {images: [images / rate / 3600 for rate in rates] for images in (1e6, 1e8, 5e9)}
    assert read_row("machine hours for 1 million") == [round(value, 1) for value in hours[1e6]]
    assert read_row("for 100 million") == [round(value) for value in hours[1e8]]
    assert read_row("for 5 billion") == [round(value) for value in hours[5e9]]
    prices = (0.10, 0.10, 3.00)
    expected = [round(value * price, 2) for value, price in zip(hours[1e6], prices, strict=True)]
    assert read_row("money for 1 million") == expected
    assert read_row("machines for 100 million in a day") == [math.ceil(value / 24) for value in hours[1e8]]
    assert read_row("machines for 5 billion in 30 days") == [math.ceil(value / 720) for value in hours[5e9]]


def test_the_measured_rates_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, rate in zip(("photos of 12 MP, whole", "JPEGs of 0.2 MP, whole"), read_row("images/s")[:2], strict=True):
        row = next(line for line in readme.splitlines() if line.startswith(f"| {name}"))
        assert f" {rate:g} (" in row
