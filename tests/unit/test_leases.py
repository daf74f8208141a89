"""Who holds a lease, and what can be known of him."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccat_data_transfer import leases
from ccat_data_transfer.leases import Owner

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells when a process started")
CHILD = "from ccat_data_transfer.leases import Owner; print(Owner.of_this_process(), flush=True); input()"


@contextmanager
def child() -> Iterator[tuple[subprocess.Popen[str], Owner]]:
    """A living process and what it calls itself."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            owner = Owner.parse(process.stdout.readline().strip())
            assert owner is not None
            yield process, owner
        finally:
            process.kill()


def test_an_owner_is_read_back_as_it_was_written() -> None:
    owner = Owner.of_this_process()
    assert Owner.parse(str(owner)) == owner


def test_an_owner_fits_its_column() -> None:
    owner = dataclasses.replace(Owner.of_this_process(), host="h" * 64)
    assert len(str(owner)) <= 255


def test_two_attempts_of_one_process_are_told_apart() -> None:
    first, second = Owner.of_this_process(), Owner.of_this_process()
    assert first != second
    assert (first.pid, first.start) == (second.pid, second.start) == (os.getpid(), first.start)


@pytest.mark.parametrize(
    "text", ["", "somebody", "a|b|c", "a|b|c|-1|e|f", "a|b|c|x|e|f", "a|b|c|1|e|f|g", "a|b|c|²|e|f"]
)
def test_what_is_no_owner_is_not_taken_for_one(text: str) -> None:
    assert Owner.parse(text) is None


@given(text=st.text())
def test_reading_an_owner_never_raises(text: str) -> None:
    owner = Owner.parse(text)
    assert owner is None or str(owner).count("|") == 5


def test_a_living_process_is_not_dead() -> None:
    assert not Owner.of_this_process().is_known_dead()


@LINUX
def test_another_living_process_is_not_dead() -> None:
    with child() as (_process, owner):
        assert owner.pid != os.getpid()
        assert not owner.is_known_dead()


@LINUX
def test_a_process_that_was_killed_is_known_to_be_dead_even_before_its_parent_asked() -> None:
    with child() as (process, owner):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert owner.is_known_dead()
        process.wait()
        assert owner.is_known_dead()


@LINUX
def test_a_process_that_got_the_id_of_a_dead_one_is_not_mistaken_for_it() -> None:
    assert dataclasses.replace(Owner.of_this_process(), start="1").is_known_dead()


@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere"},
        {"boot": "another"},  # this host before its reboot, or another host of the same name
        {"host": "elsewhere", "boot": "another"},
        {"host": "elsewhere", "start": "1"},
        {"namespace": "1"},
        {"namespace": "1", "start": "1"},
    ],
)
def test_a_process_that_is_out_of_sight_is_never_known_to_be_dead(change: dict[str, str]) -> None:
    assert not dataclasses.replace(Owner.of_this_process(), **change).is_known_dead()  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["boot", "namespace", "start"])
def test_where_the_system_cannot_tell_nobody_is_known_to_be_dead(field: str) -> None:
    unknown = dataclasses.replace(Owner.of_this_process(), pid=2**22 + 1, **{field: "unknown"})
    assert not unknown.is_known_dead()


def test_the_actor_names_host_and_process() -> None:
    assert leases.actor().endswith(f":{os.getpid()}")
    assert Owner.of_this_process().host in leases.actor()
