"""Logging: one event a line with static names and fields, to standard error.

Event names are constants such as `operation_completed`; values are fields, never part of the name.
"""

import logging
import sys
from typing import Any

import structlog

from ccat_data_transfer import settings

MAX_VALUE_LENGTH = 2000
MAX_EXCEPTION_LENGTH = 20_000


def _bounded(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters and cut giant values: package names and other programs' errors are data."""
    for key, value in event.items():
        if key == "exception":
            # Its lines are kept, and of a giant one the beginning and the end, where the error is named.
            if len(value) > MAX_EXCEPTION_LENGTH:
                half = MAX_EXCEPTION_LENGTH // 2
                event[key] = f"{value[:half]}\n…\n{value[-half:]}"
        elif isinstance(value, str):
            safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
            event[key] = safe if len(safe) <= MAX_VALUE_LENGTH else safe[:MAX_VALUE_LENGTH] + "…"
    return event


def configure(*, verbose: bool = False, quiet: bool = False) -> None:
    """Set up logging for this process; `verbose` means DEBUG, `quiet` means warnings and worse. Idempotent."""
    chosen = settings.get()
    level = "DEBUG" if verbose else "WARNING" if quiet else chosen.log_level
    terminal = sys.stderr.isatty()
    as_console = chosen.log_format == "console" or (chosen.log_format == "auto" and terminal)
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=terminal) if as_console else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _bounded,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
