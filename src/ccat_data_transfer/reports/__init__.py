"""What people and dashboards ask of the operations: lists, one history, the state of locations and queues.

Only reads; every statement is bounded by what it lists or by the number of locations, and none is made for each
row. All ages are by the database's clock.
"""

from ccat_data_transfer.reports.overview import LocationStatus, Overview, Throughput, status
from ccat_data_transfer.reports.places import Place, Queue, archive_at, places, present_copies, queues
from ccat_data_transfer.reports.transfers import (
    BATCH,
    DEFAULT_LIMIT,
    History,
    LogEntry,
    Transfer,
    by_id,
    chunks,
    history,
    of_packages,
    transfers,
)

__all__ = [
    "BATCH",
    "DEFAULT_LIMIT",
    "History",
    "LocationStatus",
    "LogEntry",
    "Overview",
    "Place",
    "Queue",
    "Throughput",
    "Transfer",
    "archive_at",
    "by_id",
    "chunks",
    "history",
    "of_packages",
    "places",
    "present_copies",
    "queues",
    "status",
    "transfers",
]
