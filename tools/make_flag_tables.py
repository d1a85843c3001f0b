"""Write the flag tables of docs/*.md from the commands: what stands between <!-- flags: NAME --> and <!-- /flags -->.

python tools/make_flag_tables.py
"""

import re
from pathlib import Path

import click

from clip.cli.main import cli

DOCS = Path(__file__).parent.parent / "docs"
TABLE = re.compile(r"(<!-- flags: (\w+) -->\n).*?(<!-- /flags -->)", re.DOTALL)
DEFAULT = re.compile(r"\s*\[(?:default: (?P<shown>[^\]]*)|(?P<required>required))\]$")  # as click ends a help text
CHOICES = re.compile(r"^\[([^\[\]]*)\]$")  # all of a metavar, as click has them, but no part of one: [W:]TEXT
IN_WORDS = re.compile(r"; default: (?P<words>[^.;]*(?:\.\d+)?)\.?$|[.] Default: (?P<sentence>.*?)\.?$")


def tabulate_flags(command: str) -> str:
    """Return the table of a command's flags: each with its default and its help."""
    options = [option for option in cli.commands[command].params if isinstance(option, click.Option)]
    with click.Context(cli.commands[command]) as context:
        records = [(option, option.get_help_record(context) or ("", "")) for option in options]
    rows = [f"| {' | '.join(_make_cells(option, *record))} |\n" for option, record in records]
    return "| flag | default | meaning |\n|---|---|---|\n" + "".join(rows).replace("|  |", "| |")


def _make_cells(option: click.Option, flags: str, text: str) -> list[str]:
    text = " ".join(text.split())  # a docstring may have several lines
    metavar = CHOICES.sub(r"\1", flags.rpartition(" ")[2])
    value = "" if option.is_flag else f" {metavar}"
    names = ", ".join(f"`{name}`" for name in option.opts[:-1])
    spelt = f"{names}{', ' if names else ''}`{option.opts[-1]}{value}`"
    default = ""
    if match := DEFAULT.search(text):
        text, default = text[: match.start()], match["required"] or match["shown"]
    elif match := IN_WORDS.search(text):
        text, default = f"{text[: match.start()]}.", match["words"] or match["sentence"]
    return [" ".join(cell.replace("|", r"\|").split()) for cell in (spelt, default, text)]


def update_tables(page: str) -> str:
    """Return a page with its tables as they have to be. Raises: KeyError for a command that does not exist."""
    return TABLE.sub(lambda match: f"{match[1]}{tabulate_flags(match[2])}{match[3]}", page)


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(update_tables(path.read_text()))
