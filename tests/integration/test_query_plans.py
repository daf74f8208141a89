"""The manager's pass costs by the work that is new: each of its queries is served by an index, never by a scan."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests import factories

from ccat_data_transfer import database, manager, migrations, models, operations, settings
from ccat_data_transfer.locations import LocationType

LARGE = ("long_term_archive_transfer", "raw_data_package", "raw_data_package_physical_copy")
ARCHIVED = 20_000


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    url = f"sqlite:///{tmp_path / 'operations.sqlite'}"
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", url)
    settings.get.cache_clear()
    migrations.upgrade(url)
    yield url
    database.dispose()
    settings.get.cache_clear()


def fill_with_archived_packages() -> None:
    """Many packages that need nothing, so that a planner has a reason to prefer the indexes."""
    with database.session_scope() as session:
        buffer = factories.make_location(session, "/data/buffer")
        lta = factories.make_location(session, "/data/lta", name="lta", location_type=LocationType.LONG_TERM_ARCHIVE)
        session.flush()
        numbers = range(1, ARCHIVED + 1)
        checksum = "sha256:" + "0" * 64
        session.execute(
            sa.insert(models.RawDataPackage),
            [{"id": n, "name": f"p{n}.tar", "size": 1, "checksum": checksum, "state": "archived"} for n in numbers],
        )
        session.execute(
            sa.insert(models.RawDataPackagePhysicalCopy),
            [
                {"raw_data_package_id": n, "data_location_id": buffer.id, "path": f"p{n}.tar", "considered": True}
                for n in numbers
            ],
        )
        session.execute(
            sa.insert(models.LongTermArchiveTransfer).values(
                status="completed", completed_at=database.utcnow(), evidence="direct", attempt=1
            ),
            [{"raw_data_package_id": n, "data_location_id": lta.id} for n in numbers],
        )
        session.execute(sa.update(models.Site).values(seen_topology=f"b{buffer.id},l{lta.id}"))


@contextmanager
def statements_of(engine: sa.Engine) -> Iterator[list[tuple[str, Any]]]:
    """Collect every statement that is executed in the block."""
    seen: list[tuple[str, Any]] = []

    def collect(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if not many and re.match(r"\s*(SELECT|UPDATE|INSERT)", statement):
            seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", collect)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", collect)


def run_an_idle_pass() -> list[tuple[str, Any]]:
    with statements_of(database.engine()) as seen:
        manager.run_pass(None)
        for archive in manager.archive_ids(None):
            with database.session_scope() as session:
                operations.schedule(session, archive)
                operations.due_here(session, archive, limit=100)
    assert seen
    return seen


def test_an_idle_pass_scans_no_large_table_of_sqlite(sqlite_url: str) -> None:
    assert sqlite_url
    fill_with_archived_packages()
    with database.session_scope() as session:
        session.execute(sa.text("ANALYZE"))
    scans = []
    for statement, parameters in run_an_idle_pass():
        with database.engine().connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        details = [row[-1] for row in plan]
        scans += [
            (detail, statement)
            for detail in details
            if re.fullmatch(rf"SCAN ({'|'.join(LARGE)})(?! USING.*INDEX ix_).*", detail)
        ]
    assert not scans


def test_an_idle_pass_scans_no_large_table_of_postgresql(operations_url: str) -> None:
    assert operations_url
    fill_with_archived_packages()
    with database.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))
    scans = []
    for statement, parameters in run_an_idle_pass():
        with database.engine().connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
        scans += [(line, statement) for line in plan if re.search(rf"Seq Scan on ({'|'.join(LARGE)})\b", line)]
    assert not scans
