"""The manager and `status` among very many archived packages; run as a program, with the database in its settings.

Fills the database with rows as the program itself would have left them, months ago, and measures in this process:
a manager that runs for weeks is warm.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import LiteralString

import sqlalchemy as sa

from benchmarks.product import ARCHIVE, BUFFER
from ccat_data_transfer import database, logs, manager, reports
from ccat_data_transfer.states import PackageState, Status

WARM_UP = 5

# The moments lie a minute apart, the last one now.
_PACKAGES: LiteralString = """
INSERT INTO raw_data_package (name, folded_name, size, checksum, state, created_at)
SELECT 'observation-' || n || '.tar', 'observation-' || n || '.tar', 1000000 + n,
       'sha256:' || encode(sha256(n::text::bytea), 'hex'), 'archived', now() - (:packages - n) * interval '1 minute'
FROM generate_series(1, :packages) AS n
"""
_COPIES: LiteralString = """
INSERT INTO raw_data_package_physical_copy
       (raw_data_package_id, data_location_id, path, checksum, status, considered, created_at, verified_at,
        verified_how)
SELECT package.id, place.id, CASE WHEN place.name = :buffer THEN package.name
       ELSE left(package.name, -4) || '/' || package.name END, package.checksum, 'present', true, package.created_at,
       CASE WHEN place.name = :archive THEN package.created_at END,
       CASE WHEN place.name = :archive THEN 'evicted-proved' END
FROM raw_data_package AS package CROSS JOIN data_location AS place
ORDER BY package.id, place.id
"""
_OPERATIONS: LiteralString = """
INSERT INTO long_term_archive_transfer
       (raw_data_package_id, data_location_id, status, attempt, attempt_limit, not_before, scheduled_at, created_at,
        started_at, completed_at, evidence)
SELECT package.id, place.id, 'completed', 1, 5, package.created_at, package.created_at, package.created_at,
       package.created_at, package.created_at, 'evicted-proved'
FROM raw_data_package AS package JOIN data_location AS place ON place.name = :archive
ORDER BY package.id
"""
_LOGS: LiteralString = """
INSERT INTO long_term_archive_transfer_log (long_term_archive_transfer_id, at, verb, status, attempt, actor)
SELECT operation.id, operation.created_at, step.verb, step.status, step.attempt, 'host:1'
FROM long_term_archive_transfer AS operation
CROSS JOIN (VALUES (1, 'create', 'pending', 0), (2, 'schedule', 'scheduled', 0), (3, 'claim', 'in_progress', 1),
                   (4, 'record', 'completed', 1)) AS step (number, verb, status, attempt)
ORDER BY operation.id, step.number
"""


def fill(packages: int) -> None:
    """So many archived packages, each with its two copies, its operation and the log of that."""
    values = {"packages": packages, "buffer": BUFFER, "archive": ARCHIVE}
    with database.engine().begin() as connection:
        for statement in (_PACKAGES, _COPIES, _OPERATIONS, _LOGS):
            text = sa.text(statement)
            connection.execute(text, {name: values[name] for name in text.compile().params})
    with database.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))  # as the server would have done by itself long ago


def timed(act: Callable[[], None], times: int) -> list[float]:
    """Milliseconds of each call, once they are warm."""
    for _ in range(WARM_UP):
        act()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - began))
    return found


def one_pass() -> None:
    """A pass of a manager for all sites; raises when it found something to do."""
    done = manager.run_pass(None)
    if done.created or done.rescued or done.scheduled or done.unsent:
        raise RuntimeError(f"the pass found something to do: {done}")


def status(packages: int) -> None:
    """What `status` asks; raises when it is not what was filled in."""
    with database.session_scope(read_only=True) as session:
        found = reports.status(session)
    if found.packages[PackageState.ARCHIVED] != packages or found.locations[0].counts[Status.COMPLETED] != packages:
        raise RuntimeError(f"status counted {found.packages}")


def main() -> None:
    """`idle PACKAGES TIMES`: print the measurements as JSON."""
    packages, times = map(int, sys.argv[1:])
    logs.configure()
    manager.run_pass(None)  # sees the topology, while there are no copies yet to look at
    fill(packages)
    measured = {"pass": timed(one_pass, times), "status": timed(lambda: status(packages), times)}
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
