"""What every command is made of: the options that all of them take, logging, and groups that load when used."""

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import ccat_data_transfer


@dataclass
class Invocation:
    """What was asked for before and after the command's name; shared by the whole call."""

    verbose: bool = False


def _set_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).verbose = True


def _set_workdir(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value == "":  # an unset variable of the shell, and not the current folder
        raise click.BadParameter("it is empty")
    if value is not None:
        set_for_this_process("working_directory", str(Path(value).absolute()))


def set_for_this_process(name: str, value: str) -> None:
    """Override one setting for this process and those that it starts."""
    from ccat_data_transfer import settings

    os.environ[settings.PREFIX + name.upper()] = value
    settings.get.cache_clear()


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"ccat_data_transfer {ccat_data_transfer.__version__}")
        context.exit()


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--workdir"],
            type=click.Path(),
            metavar="DIR",
            help="Folder of the database and of packed packages (default: .ccat_data_transfer here).",
            expose_value=False,
            is_eager=True,
            callback=_set_workdir,
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            help="Log in detail; show where an error came from.",
            expose_value=False,
            is_eager=True,
            callback=_set_verbose,
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            help="Show the version and exit.",
            expose_value=False,
            is_eager=True,
            callback=_show_version,
        ),
    ]


class Command(click.Command):
    """A command that takes the common options and sets up logging; a `service` logs what it does, not only trouble."""

    def __init__(self, *arguments: Any, example: str = "", service: bool = False, **options: Any) -> None:
        options.setdefault("epilog", _examples(example) if example else None)
        super().__init__(*arguments, **options)
        self.params += _common_options()
        self._is_service = service

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; with a command that is not the one to run this is not reached, nor for its help."""
        from ccat_data_transfer import logs

        verbose = ctx.ensure_object(Invocation).verbose
        logs.configure(verbose=verbose, quiet=not self._is_service)
        return super().invoke(ctx)


def _examples(text: str) -> str:
    lines = "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
    return f"\b\nExample:\n{lines}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is, as `module:attribute` below this package, and what the list says of it."""

    target: str
    summary: str


class _Suggesting(click.Group):
    """A group that names the nearest command when there is none of the name asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raises `click.UsageError`."""
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, known, n=1)
        suggestion = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
        raise click.UsageError(f"there is no command '{name}'{suggestion}", ctx)


class LazyGroup(_Suggesting):
    """A group whose commands are imported when they are used: their help costs only what it shows."""

    def __init__(self, *arguments: Any, entries: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += _common_options()
        self.entries = entries

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt is told by the edge alone, and not by click with an empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise click.Abort from interrupt

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order in which they are explained."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - same
        """Import the module of one command."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(f"ccat_data_transfer.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - same
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items()])


class Group(_Suggesting):
    """A group of the commands of one noun."""

    command_class = Command

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += _common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order in which they are defined."""
        return list(self.commands)


def command(name: str, *, example: str, service: bool = False) -> Callable[[Callable[..., Any]], Command]:
    """A command that belongs to no noun."""
    return click.command(name, cls=Command, example=example, service=service)
