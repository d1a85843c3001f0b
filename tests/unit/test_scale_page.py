"""docs/scale.md: each block parses, and so does each command of ours in it."""

import json
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
    context = command.make_context(words[1], words[2:])
    if words[1] == "embed":
        assert parse_part(context.params["part"]).index == 3


def test_the_indexed_job_and_the_array_have_as_many_parts_as_they_say() -> None:
    job = yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml"))["spec"]
    assert job["completionMode"] == "Indexed"
    assert f"auto/{job['completions']}" in job["template"]["spec"]["containers"][0]["args"]
