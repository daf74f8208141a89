"""What is logged is one line, whatever is in it."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from ccat_data_transfer import logs
from ccat_data_transfer.exceptions import ConfigurationError

Configure = Callable[..., None]


@pytest.fixture(autouse=True)
def restored(configure: Configure) -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines(configure: Configure, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    """What was logged as JSON since the last call; logging is set up by the test."""
    configure(log_format="json")

    def lines() -> list[dict[str, Any]]:
        out, err = capsys.readouterr()
        assert out == ""
        return [json.loads(line) for line in err.splitlines()]

    return lines


def test_an_event_is_one_line_of_json_with_its_fields(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logs.get("test").info("operation_completed", operation_id=7, location="cologne/lta")
    (line,) = lines()
    assert line["event"] == "operation_completed"
    assert (line["operation_id"], line["location"], line["level"]) == (7, "cologne/lta", "info")
    assert line["timestamp"].endswith("Z")


def test_control_characters_are_escaped(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logs.get("test").info("x", package="a\nb\x1b[31m\u202e\udcff")
    (line,) = lines()
    assert line["package"] == "a\\nb\\x1b[31m\\u202e\\udcff"


def test_a_console_gets_no_control_characters_either(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="console")
    logs.configure()
    logs.get("test").info("x", package="a\nb\x1b[31m", packages=["a\nb\x1b[31m"])
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "\x1b" not in shown


def test_a_giant_value_is_cut(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logs.get("test").info("x", error="e" * 1_000_000)
    (line,) = lines()
    assert line["error"] == "e" * 2000 + "…"


def test_a_giant_value_that_is_escaped_is_cut_after_that(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logs.get("test").info("x", error="\0" * 2000)
    (line,) = lines()
    assert len(line["error"]) == 2001


def test_what_other_programs_log_has_the_same_form(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logging.getLogger("kombu").error("cannot\nconnect to %s", "x" * 3000)
    (line,) = lines()
    assert line["level"] == "error"
    assert line["event"].startswith("cannot\\nconnect to xxx")
    assert len(line["event"]) == 2001


def test_an_exception_is_logged_with_its_traceback_on_the_same_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        logs.get("test").error("failed", exc_info=True)
        logging.getLogger("other").exception("failed too")
    ours, theirs = lines()
    for line in (ours, theirs):
        assert "Traceback" in line["exception"]
        assert "ValueError: broken\nin two" in line["exception"]


def test_a_giant_error_does_not_make_a_giant_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    try:
        raise ValueError("e" * 1_000_000)
    except ValueError:
        logs.get("test").error("failed", exc_info=True)
    (line,) = lines()
    assert "Traceback" in line["exception"]
    assert len(line["exception"]) < 100_000


def test_what_is_bound_to_the_context_is_in_every_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    with structlog.contextvars.bound_contextvars(operation_id=7):
        logs.get("test").info("inside")
        logging.getLogger("other").warning("theirs")
    logs.get("test").info("outside")
    inside, theirs, outside = lines()
    assert inside["operation_id"] == theirs["operation_id"] == 7
    assert "operation_id" not in outside


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ({}, ["info", "warning"]),
        ({"verbose": True}, ["debug", "info", "warning"]),
        ({"quiet": True}, ["warning"]),
    ],
)
def test_verbose_and_quiet_choose_what_is_logged(
    arguments: dict[str, bool], seen: list[str], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    logs.configure(**arguments)
    for level in ("debug", "info", "warning"):
        getattr(logs.get("test"), level)("x")
    assert [line["level"] for line in lines()] == seen


def test_the_configured_level_holds_when_nothing_else_is_asked(
    configure: Configure, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    configure(log_level="ERROR")
    logs.configure()
    logs.get("test").warning("quiet")
    logs.get("test").error("loud")
    assert [line["event"] for line in lines()] == ["loud"]


def test_configuring_twice_logs_everything_once(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logs.configure()
    logs.configure()
    logs.get("test").info("once")
    assert len(lines()) == 1


def test_a_logger_made_before_logging_was_set_up_follows_it(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    early = logs.get("early")
    configure(log_format="json")
    logs.configure()
    early.info("x")
    assert json.loads(capsys.readouterr().err)["event"] == "x"


def test_a_bad_setting_is_told_before_anything_is_logged(configure: Configure) -> None:
    configure(log_level="LOUD")
    with pytest.raises(ConfigurationError, match="log_level"):
        logs.configure()
