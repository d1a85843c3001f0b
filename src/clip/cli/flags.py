"""Make flags from the fields of a job: the field gives default, choices and help."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import click

from ..jobs.fields import field_docs, field_types

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT_HELP = "Folder where the images are now, if they have moved since.  [default: as in the manifest]"
QUOTES = "\"'"


class GroupedOption(click.Option):
    """A flag that the help shows under a heading."""

    group: str = ""


class JobOption(GroupedOption):
    """A flag of a job's field; its help is the field's docstring, read when help is shown."""

    record: type
    leaf: str

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag and its help."""
        self.help = self.help or field_docs(self.record).get(self.leaf)
        if self.multiple and self.help and "repeated" not in self.help:
            self.help += " May be repeated."
        return super().get_help_record(ctx)


class GroupedCommand(click.Command):
    """A command whose help shows examples, and the flags under headings, in the order in which these first occur."""

    def __init__(self, *arguments: Any, examples: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, then the examples."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Example" if len(self.examples) == 1 else "Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags; those without a heading come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        rest = groups.pop("", [])
        for heading, records in [*groups.items(), ("Other" if groups else "Options", rest)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def grouped(group: str, *flags: str, **settings: Any) -> Callable[..., Any]:
    """Return the decorator of a flag under a heading."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        decorated = click.option(*flags, cls=GroupedOption, **settings)(command)
        option: GroupedOption = decorated.__click_params__[-1]  # type: ignore[attr-defined]  # click collects flags there
        option.group = group
        return decorated

    return decorate


def job_option(job: type, field: str, *flags: str, group: str = "", **settings: Any) -> Callable[..., Any]:
    """Return the decorator of a flag that sets a field of a job, or of a record in it (`limits.max_bytes`).

    `group` is the heading under which the help shows it.
    """
    first, _, leaf = field.rpartition(".")
    record: type = type(getattr(job, first)) if first else job
    hints = field_types(record)
    kinds = [kind for kind in get_args(hints[leaf]) if kind is not NoneType] or [hints[leaf]]
    default = getattr(record, leaf, None)
    if all(isinstance(kind, str) for kind in kinds):
        settings.setdefault("type", click.Choice(kinds))
    elif isinstance(default, bool):
        settings.setdefault("is_flag", True)
    elif kinds[0] in (int, float):
        settings.setdefault("type", kinds[0])
    shown = default not in (None, (), "") and not isinstance(default, bool)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        name = field.replace(".", "__")
        decorated = click.option(*flags, name, cls=JobOption, default=default, show_default=shown, **settings)(command)
        option: JobOption = decorated.__click_params__[-1]  # type: ignore[attr-defined]  # click collects flags there
        option.record, option.leaf, option.group = record, leaf, group
        return decorated

    return decorate


def split_names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG001
    """Return the names in `A,B` of a flag that may be repeated."""
    return tuple(name for value in values for name in value.split(",") if name)


def spell_as_flags(command: click.Command | None) -> Callable[[str, str | None], str]:
    """Return what spells an argument of Python as the flag of the command that ran; other arguments stay as they are.

    `limits.max_bytes` and `max_bytes` become --max-bytes, `overwrite=True` becomes --overwrite, and `long_text="cut"`
    becomes --long-text cut.
    """
    options = [parameter for parameter in (command.params if command else ()) if isinstance(parameter, click.Option)]
    paths = {option.name or "": _choose_flag(option) for option in options}  # columns__text: --text-column
    leaves = {path.rpartition("__")[2]: flag for path, flag in paths.items()}  # text: --text-column
    flags = {flag.strip("-").replace("-", "_"): flag for flag in paths.values()} | leaves | paths

    def spell(name: str, value: str | None) -> str:
        flag = flags.get(name.replace(".", "__")) or flags.get(name.rpartition(".")[2])
        if flag is None or value == "False":  # no flag says that another is left out
            return name if value is None else f"{name}={value}"
        return flag if value in (None, "True") else f"{flag} {value.strip(QUOTES)}"

    return spell


def _choose_flag(option: click.Option) -> str:
    """Return the flag that a message names: the first with a whole word."""
    return next((flag for flag in option.opts if flag.startswith("--")), option.opts[0])
