"""Options and arguments that mean the same in every command that takes them."""

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

MAX_ID = 2**63 - 1  # what the database can count to


class _OperationId(click.IntRange):
    """The number of an operation; for anything else it says where the numbers are."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; fails with the command that finds it."""
        text = str(value)
        if not text.lstrip("-").isdecimal():
            self.fail(
                f"'{text}' is no number, and an operation is named by its number: "
                f"`ccat_data_transfer transfer list --package {shlex.quote(text)}` shows those of a package",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


OPERATION_ID = _OperationId(1, MAX_ID)


def site(function: F) -> F:
    """`--site S`."""
    return click.option("--site", metavar="SITE", help="Only this site (short name or name).")(function)


def location(function: F) -> F:
    """`--location L`."""
    return click.option("--location", metavar="LOCATION", help="Only this location, as SITE/NAME or NAME.")(function)


def as_json(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def limit(function: F) -> F:
    """`--limit N`."""
    return click.option(
        "--limit",
        type=click.IntRange(1, 1_000_000),
        default=100,
        show_default=True,
        metavar="N",
        help="Show at most this many.",
    )(function)


def no_headers(function: F) -> F:
    """`--no-headers`."""
    return click.option("--no-headers", is_flag=True, help="Do not read FITS headers for the sidecar of new packages.")(
        function
    )
