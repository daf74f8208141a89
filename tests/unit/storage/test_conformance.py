"""Backends keep the storage contract, and the checks notice those that do not."""

import os
from collections.abc import Callable

import pytest

from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.storage import conformance
from ccat_data_transfer.storage.base import Progress, Reader, Receipt, no_progress
from ccat_data_transfer.storage.conformance import CHECKS, Check, ConformanceError
from ccat_data_transfer.storage.posix import PosixStorage


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_directory_keeps_the_contract(archive: PosixStorage, check: Check) -> None:
    check.run(archive, "conformance")


def test_checks_have_distinct_names_and_a_description() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.description for check in CHECKS)


class _Overwriting(PosixStorage):
    """Forgets that something was there."""

    def put(
        self, source: Reader, key: str, expected: Checksum, *, token: str, on_progress: Progress = no_progress
    ) -> Receipt:
        path = f"{self.location.options['path']}/{key}"
        if os.path.lexists(path):
            os.unlink(path)  # noqa: PTH108 - a string is all there is
        return super().put(source, key, expected, token=token, on_progress=on_progress)


class _Trusting(PosixStorage):
    """Takes whatever the source yields for what was expected."""

    def put(
        self, source: Reader, key: str, expected: Checksum, *, token: str, on_progress: Progress = no_progress
    ) -> Receipt:
        data = bytearray(source.size)
        source.readinto(memoryview(data))
        held = conformance.MemoryReader(bytes(data))
        found = conformance.checksum(bytes(data), expected.algorithm)
        return super().put(held, key, found, token=token, on_progress=on_progress)


class _Deaf(PosixStorage):
    """Does not tell of progress."""

    def put(
        self, source: Reader, key: str, expected: Checksum, *, token: str, on_progress: Progress = no_progress
    ) -> Receipt:
        del on_progress
        return super().put(source, key, expected, token=token)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        (_Overwriting, "create_only"),
        (_Overwriting, "adoption"),
        (_Trusting, "wrong_checksum"),
        (_Deaf, "abort"),
        (_Deaf, "read_back"),
    ],
)
def test_the_checks_notice_a_backend_that_breaks_the_contract(
    archive: PosixStorage, backend: Callable[..., PosixStorage], name: str
) -> None:
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ConformanceError):
        check.run(backend(archive.location), "conformance")
