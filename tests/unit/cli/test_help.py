"""The help is a golden file, so that each change of wording is seen; it has an example for each verb, and completion.

A changed help is written anew by `python tests/unit/cli/test_help.py`.
"""

import shlex
from pathlib import Path

import click
import pytest
from kit import GOLDEN
from kit.in_process import Run

from clip.cli.flags import GroupedCommand
from clip.cli.main import VERBS, cli

HELP = GOLDEN / "help.txt"


def render_help() -> str:
    """The help of the command and of each verb, 80 columns wide."""
    texts: list[str] = []
    for command in (cli, *cli.commands.values()):
        name = "clip" if command is cli else f"clip {command.name}"
        command._help_option = None  # which click keeps from the first context that asked, of other tests too
        names = ["-h", "--help"]
        with click.Context(
            command, info_name=name, terminal_width=80, max_content_width=80, help_option_names=names
        ) as context:
            texts.append(f"$ {name} --help\n{command.get_help(context)}\n")
    return "\n".join(texts)


def test_the_help_is_the_golden_one() -> None:
    assert render_help() == HELP.read_text(encoding="utf-8"), f"run `python {Path(__file__).name}` and read the diff"


@pytest.mark.parametrize("name", list(cli.commands))
def test_each_verb_has_an_example_that_it_takes(name: str) -> None:
    command = cli.commands[name]
    assert isinstance(command, GroupedCommand)
    assert command.examples
    for example in command.examples:
        words = shlex.split(example, comments=True)
        if words[0] == "clip" and not {"|", ">"} & set(words):
            assert words[1] == name
            command.make_parser(click.Context(command)).parse_args(words[2:])  # raises for a flag that it lacks


def test_every_verb_stands_under_a_heading_once() -> None:
    listed = [command.name for commands in VERBS.values() for command in commands]
    assert listed == list(cli.commands)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_asks_the_command(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert (code, "_CLIP_COMPLETE" in out) == (0, True)
    assert run("completion", "tcsh")[0] == 2


def test_flags_have_the_spelling_of_their_fields_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na cat\n")
    arguments = ("embed", tmp_path / "a.csv", "-o", tmp_path / "out", "-m", "sketch", "--dry-run")
    for flags in (("--texts",), ("--text",)):
        assert run(*arguments, *flags)[0] == 0
    for flags in (("--globs", "*.csv"), ("--hashes",), ("--no-normalize",)):
        assert "No such option" not in run(*arguments, *flags)[2]


if __name__ == "__main__":
    HELP.write_text(render_help(), encoding="utf-8")
