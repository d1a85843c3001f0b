"""Messages name Python's arguments in Python and flags on the command line; flags come from the fields of the jobs."""

import re
import runpy
from pathlib import Path
from typing import Any

import click
import pytest
from kit import ROOT
from kit.in_process import Run

from clip.cli.flags import spell_as_flags
from clip.cli.main import cli
from clip.errors import InputError
from clip.jobs import EmbedJob, RayOptions, SearchJob, TuneJob
from clip.jobs.fields import field_docs, nest

TOOL = runpy.run_path(str(ROOT / "tools" / "make_flag_tables.py"))
tabulate_flags, update_tables = TOOL["tabulate_flags"], TOOL["update_tables"]


@pytest.mark.parametrize(
    ("command", "item", "remedy", "in_python", "on_the_command_line"),
    [
        ("embed", "a.png", "Raise `max_bytes`.", "Raise max_bytes.", "Raise --max-bytes."),
        ("embed", "a.png", "Raise `limits.max_bytes`.", "Raise limits.max_bytes.", "Raise --max-bytes."),
        ("embed", "out", "Pass `overwrite=True`.", "Pass overwrite=True.", "Pass --overwrite."),
        ("embed", "a.txt!3", 'Pass `long_text="cut"`.', 'Pass long_text="cut".', "Pass --long-text cut."),
        ("embed", "out", "Pass `model`.", "Pass model.", "Pass --model."),
        ("embed", "a.csv", "Name it with `columns.entry`.", "Name it with columns.entry.", "Name it with --column."),
        ("embed", "a.csv", "Name it with `columns.text`.", "Name it with columns.text.", "Name it with --text-column."),
        ("embed", "a.csv", "Pass `columns.texts`.", "Pass columns.texts.", "Pass --text."),
        ("embed", "a.csv", "Pass `text`.", "Pass text.", "Pass --text-column."),
        ("embed", "a.png", "Pass `decode`.", "Pass decode.", "Pass --decode."),
        ("search", "query", "Pass `texts`.", "Pass texts.", "Pass --text."),
        ("search", "query", "Pass `max_bytes`.", "Pass max_bytes.", "Pass max_bytes."),
        ("tune", "a", "Pass `images`.", "Pass images.", "Pass --pictures."),
        ("embed", "a", "Pass `normalize=False`.", "Pass normalize=False.", "Pass normalize=False."),
        ("embed", "a", "Pass `overwrite=False`.", "Pass overwrite=False.", "Pass overwrite=False."),
        ("no command", "a", "Pass `texts`.", "Pass texts.", "Pass texts."),
        ("embed", "`max_bytes`", "", "max_bytes", "--max-bytes"),
        ("embed", "in `max_bytes`.png", "", "in `max_bytes`.png", "in `max_bytes`.png"),  # a file's name
    ],
)
def test_an_argument_is_spelt_as_its_reader_writes_it(
    command: str, item: str, remedy: str, in_python: str, on_the_command_line: str
) -> None:
    error = InputError(item, "found 5", remedy=remedy)
    spell = spell_as_flags(cli.commands.get(command))
    for text, wanted in ((str(error), in_python), (error.render(spell), on_the_command_line)):
        assert text == (f"{item}: found 5. {wanted}" if remedy else f"{wanted}: found 5")


def test_what_was_found_is_repeated_as_it_was() -> None:
    error = InputError("a.csv", "has the columns `max_bytes` and `model`", remedy="Rename `max_bytes`.")
    assert (
        error.render(spell_as_flags(cli.commands["embed"]))
        == "a.csv: has the columns `max_bytes` and `model`. Rename --max-bytes."
    )


def test_the_command_renders_the_errors_of_the_library(run: Run, tmp_path: Path) -> None:
    code, _, said = run("search", tmp_path)
    assert (code, said) == (
        2,
        "clip: query: found nothing to look for, expected a text, an image or a vector. Pass --text.\n",
    )
    with pytest.raises(InputError, match=r"Pass texts\.$"):
        SearchJob(output=tmp_path)
    (tmp_path / "in").mkdir()
    code, _, said = run("embed", tmp_path / "in", "-o", tmp_path / "out", "--max-seconds", "5")
    assert code == 2
    assert said.startswith("clip: --max-seconds: found 5.0 without isolate, expected more than 0 and at most 86,400")
    assert said.endswith(" Pass --isolate too.\n")
    code, _, said = run("embed", "a.csv", "-o", "out", "--text", "--orient", "exif", "--text-column", "b")
    assert (code, said) == (2, "clip: --text: found options of images too. Leave out --text-column, --orient.\n")
    code, _, said = run("embed", "in", "-o", "out", "--update", "--overwrite")
    assert (code, said) == (2, "clip: --update: found overwrite too, expected one of them. Leave out --overwrite.\n")
    code, _, said = run("embed", "in", "-o", "out", "--limit", "0")
    assert (code, said) == (2, "clip: --limit: found 0, expected at least 1. Pass a larger number.\n")


def mirrored(command: str) -> list[click.Option]:
    """The flags of the job's fields; those of a cluster are not the job's."""
    options = [option for option in cli.commands[command].params if hasattr(option, "leaf")]
    return [option for option in options if option.record is not RayOptions]  # type: ignore[misc]


def test_the_flags_of_a_cluster_are_the_fields_of_its_options() -> None:
    options: Any = [option for option in cli.commands["embed"].params if getattr(option, "record", None) is RayOptions]
    assert RayOptions(**{option.name: option.default for option in options}) == RayOptions()


def test_options_of_a_cluster_without_one_are_refused(run: Run) -> None:
    code, _, said = run("embed", "in", "-o", "out", "--cpus-per-actor", "2")
    assert (code, "found --cpus-per-actor without --engine ray, expected both. Add it." in said) == (2, True)


@pytest.mark.parametrize(("command", "job"), [("embed", EmbedJob), ("tune", TuneJob)])
def test_each_flag_has_the_default_and_the_help_of_its_field(command: str, job: type) -> None:
    options: Any = mirrored(command)
    assert len(options) > 10
    required = {"source": ("in",)} | ({"output": "out"} if command == "embed" else {})
    defaults = {option.name: option.default for option in options}
    assert job(**required, **nest(job, defaults)) == job(**required)
    for option in options:
        with click.Context(cli.commands[command]) as context:
            record = option.get_help_record(context)
        assert record is not None
        assert record[1].startswith(field_docs(option.record)[option.leaf]), option.name


def test_help_is_in_whole_sentences() -> None:
    for name, command in cli.commands.items():
        with click.Context(command) as context:
            options = [option for option in command.params if isinstance(option, click.Option)]
            records = [option.get_help_record(context) or ("", "") for option in options]
        for flag, text in records:
            assert re.sub(r"\s*\[(default|required).*\]$", "", text).endswith("."), (name, flag, text)
        assert (command.help or "").strip().endswith("."), name


@pytest.mark.parametrize("page", sorted({page.name for page in (ROOT / "docs").glob("*.md")}))
def test_the_flag_tables_of_the_docs_are_those_of_the_commands(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert update_tables(text) == text, "run `python tools/make_flag_tables.py`"


def test_every_command_has_a_flag_table() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert sorted(re.findall(r"<!-- flags: (\w+) -->", pages)) == sorted(cli.commands)


def test_a_table_has_a_row_for_each_flag_and_escapes_what_a_table_would_split() -> None:
    table = tabulate_flags("embed").splitlines()
    assert table[:2] == ["| flag | default | meaning |", "|---|---|---|"]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in table)
    assert len(table) == 2 + sum(isinstance(option, click.Option) for option in cli.commands["embed"].params)
    assert "| `-o`, `--output OUT` | required | Folder to write, here or at s3://, gs://, az://. |" in table
    assert r"| `--dtype float32\|float16` | float32 | Number type of the stored vectors. |" in table
    assert "| `--workers N` | one per core | Threads or processes that decode. |" in table
    assert "| `--untrained SEED` | | Draw the weights at random from this seed, instead of reading any. |" in table


def test_a_change_of_a_flag_shows_in_the_table() -> None:
    stale = "<!-- flags: index -->\n| flag |\n<!-- /flags -->\n"
    assert update_tables(stale) == f"<!-- flags: index -->\n{tabulate_flags('index')}<!-- /flags -->\n"
    with pytest.raises(KeyError):
        update_tables("<!-- flags: indexes -->\n<!-- /flags -->\n")
