"""The command line: `main` is the edge where every error becomes one line, a hint and an exit code.

Commands are one file per noun and are imported when they are called, so that help comes at once.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from ccat_data_transfer.cli.commands import Entry, Invocation, LazyGroup
from ccat_data_transfer.exceptions import CCATDataOperationError

DEFECT = 70
INTERRUPTED = 130
NOT_ALL = 1

_EPILOG = """\b
Example:
  ccat_data_transfer archive ./night-1 --to /archive/a --to /archive/b

\b
Settings come from variables CCAT_DATA_TRANSFER_..., from the TOML file that
CCAT_DATA_TRANSFER_SETTINGS_FILE names, else from defaults: SQLite in the
working directory and no broker.

\b
Exit codes:
  0    all that was asked for is true
  1    not everything asked for was achieved: something failed or still waits
  2    bad command or bad input
  3    settings or topology are at fault
  4    the database cannot be used
  5    the message broker does not answer
  6    a storage place cannot be used
  7    integrity: bytes and checksum disagree, or a name is taken by other bytes
  70   a defect of this program
  130  interrupted

\b
Completion in the shell:
  eval "$(_CCAT_DATA_TRANSFER_COMPLETE=bash_source ccat_data_transfer)"
"""

_ENTRIES = {
    "archive": Entry("archive:archive", "Archive folders and tars in one command, nothing set up before."),
    "archive-manager": Entry("manager:archive_manager", "Run the manager service, or one pass of it."),
    "worker": Entry("worker:worker", "Carry packages to the archives."),
    "topology": Entry("topology:topology", "Declare sites and data locations."),
    "location": Entry("location:location", "See how the storage places are."),
    "package": Entry("package:package", "Register packages and look at them."),
    "transfer": Entry("transfer:transfer", "List, explain, retry and cancel archive operations."),
    "status": Entry("status:status", "Show backlog, throughput, ages and failures."),
    "queues": Entry("queues:queues", "Show the queues of the archives and what is in them."),
    "db": Entry("db:db", "Upgrade and check the database."),
}

root = LazyGroup(
    name="ccat_data_transfer",
    entries=_ENTRIES,
    help="Bring raw data packages into long-term archives and prove that they are there.",
    epilog=_EPILOG,
    context_settings={"max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error has been told on standard error."""
    asked = Invocation()
    try:
        result = root.main(args=arguments, prog_name="ccat_data_transfer", standalone_mode=False, obj=asked)
        sys.stdout.flush()
    except click.ClickException as error:
        return _misused(error)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as ended:  # click ends by itself after completing a word, and when nobody reads any more
        return ended.code if isinstance(ended.code, int) else NOT_ALL
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except CCATDataOperationError as error:
        return _told(error, str(error), error.remedy, error.exit_code, asked)
    except Exception as error:  # noqa: BLE001 - the edge: whatever was not foreseen is told as a defect
        text = f"unexpected {type(error).__name__}: {error}"
        hint = "this is a defect; run again with --verbose and report it"
        return _told(error, text, hint, DEFECT, asked)
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    from ccat_data_transfer.cli import output

    if sys.stderr.isatty():
        sys.stderr.write("\n")  # behind the ^C that the terminal shows
    output.complain(*output.INTERRUPTION)
    return INTERRUPTED


def _misused(error: click.ClickException) -> int:
    """Tell a command that was not understood; click's own words, without what a terminal would act on."""
    from ccat_data_transfer.cli import output

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    output.complain("error", " ".join(error.format_message().split("\n")))
    if isinstance(error, click.UsageError) and error.ctx is not None:
        output.complain("hint", f"`{error.ctx.command_path} --help` explains the command")
    return error.exit_code


def _told(error: BaseException, text: str, hint: str, code: int, asked: Invocation) -> int:
    from ccat_data_transfer.cli import output

    with contextlib.suppress(BrokenPipeError):
        if asked.verbose:
            sys.stderr.write("".join(traceback.format_exception(error)))
        output.complain("error", text)
        if hint:
            output.complain("hint", hint)
    return code


def _reader_left() -> int:
    """Nobody reads any more, as with `| head`: what is still buffered must not raise again at the very end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOT_ALL
