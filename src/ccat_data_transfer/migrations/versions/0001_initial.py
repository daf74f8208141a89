"""The first tables.

Frozen: it imports no models, because they go on changing. SQLite and PostgreSQL both run it, inside one transaction.
There is no `downgrade`.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles

revision = "0001"
down_revision = None


class clock(sa.sql.expression.ColumnElement[Any]):
    """The database's clock as a column's default."""

    inherit_cache = True


@compiles(clock, "postgresql")
def _clock_postgresql(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "(statement_timestamp() + make_interval(secs => 0.0))"


@compiles(clock, "sqlite")
def _clock_sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0.0)) || '000')"


BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows only in an INTEGER column
CHECKSUM = sa.String(160)
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)
WORD = sa.String(40)  # of a closed vocabulary, which a check holds it to

EVIDENCE = ("direct", "evicted-proved", "store-checksum", "readback-remote", "evicted-unproved", "reopen-only")
FAILURE_REASON = (
    "source_corrupt",
    "source_missing",
    "source_unreadable",
    "source_changed",
    "no_checksum",
    "bad_name",
    "too_large",
    "destination_conflict",
    "destination_unavailable",
    "source_unavailable",
    "storage_error",
    "worker_lost",
    "interrupted",
    "internal_error",
    "attempts_exhausted",
    "cancelled",
)
LOCATION_TYPE = ("source", "buffer", "long_term_archive", "processing")
PACKAGE_STATE = ("waiting", "transferring", "archived", "failed")
PAUSE_REASON = ("missing", "wrong_volume", "full", "read_only", "denied", "unreachable", "evidence", "misconfigured")
PHYSICAL_COPY_STATUS = (
    "present",
    "staged",
    "deletion_scheduled",
    "deletion_in_progress",
    "deletion_possible",
    "deleted",
    "deletion_failed",
)
STATUS = ("pending", "scheduled", "in_progress", "completed", "failed")
STORAGE_TYPE = ("disk", "s3", "tape")
VERB = ("create", "schedule", "claim", "record", "retry", "snooze", "fail", "rescue", "cancel")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def required(name: str, kind: Any, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *arguments, nullable=False, **options)


def optional(name: str, kind: Any, *arguments: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *arguments, nullable=True)


def key(name: str, kind: Any, *arguments: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *arguments, primary_key=True)


def one_of(column: str, words: tuple[str, ...], name: str | None = None) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=name or column)


def partial(name: str, *columns: str, where: str, sqlite_where: str | None = None) -> sa.Index:
    return sa.Index(
        name, *columns, postgresql_where=sa.text(where), sqlite_where=sa.text(sqlite_where or where)
    )


sa.Table(
    "site",
    metadata,
    key("id", sa.Integer),
    required("name", sa.String(200), unique=True),
    required("short_name", sa.String(63), unique=True),
    optional("location", sa.Text),
    required("seen_topology", sa.Text, server_default=""),
)

sa.Table(
    "data_location",
    metadata,
    key("id", sa.Integer),
    required("site_id", sa.Integer, sa.ForeignKey("site.id")),
    required("name", sa.String(63)),
    required("location_type", WORD),
    required("storage_type", WORD),
    required("priority", sa.Integer, server_default="0"),
    required("active", sa.Boolean, server_default=sa.true()),
    optional("volume_id", sa.String(64)),
    required("required_evidence", WORD, server_default="evicted-unproved"),
    optional("paused_until", TIME),
    optional("pause_reason", WORD),
    optional("pause_message", sa.Text),
    required("created_at", TIME, server_default=clock()),
    sa.UniqueConstraint("site_id", "name"),
    sa.CheckConstraint("paused_until IS NULL OR pause_reason IS NOT NULL", name="pause_has_reason"),
    one_of("location_type", LOCATION_TYPE),
    one_of("storage_type", STORAGE_TYPE),
    one_of("required_evidence", EVIDENCE, name="evidence"),
    one_of("pause_reason", PAUSE_REASON),
    sa.Index("ix_data_location_active", "location_type", "active"),
)

sa.Table(
    "disk_data_location",
    metadata,
    key("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("path", sa.Text),
    optional("host", sa.String(255)),
    optional("user", sa.String(255)),
)

sa.Table(
    "s3_data_location",
    metadata,
    key("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("bucket_name", sa.String(255)),
    required("prefix", sa.Text, server_default=""),
    optional("region", sa.String(63)),
    optional("endpoint_url", sa.Text),
)

sa.Table(
    "tape_data_location",
    metadata,
    key("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("library_name", sa.String(255)),
    required("mount_path", sa.Text),
)

sa.Table(
    "raw_data_package",
    metadata,
    key("id", BIG_ID),
    required("name", sa.String(255), unique=True),
    required("folded_name", sa.String(512), unique=True),
    required("size", sa.BigInteger),
    optional("checksum", CHECKSUM),
    required("state", WORD, server_default="waiting"),
    required("created_at", TIME, server_default=clock()),
    sa.CheckConstraint("size >= 0", name="size_not_negative"),
    one_of("state", PACKAGE_STATE, name="package_state"),
    sa.Index("ix_raw_data_package_state", "state", "id"),
)

sa.Table(
    "raw_data_file",
    metadata,
    key("id", sa.Uuid),
    optional("raw_data_package_id", BIG_ID, sa.ForeignKey("raw_data_package.id")),
    required("name", sa.String(255)),
    required("path", sa.Text),
    required("size", sa.BigInteger),
    optional("checksum", CHECKSUM),
    optional("modified_at", TIME),
    sa.UniqueConstraint("raw_data_package_id", "path"),
    sa.CheckConstraint("size >= 0", name="size_not_negative"),
)

sa.Table(
    "raw_data_package_metadata",
    metadata,
    key("raw_data_package_id", BIG_ID, sa.ForeignKey("raw_data_package.id")),
    required("document", DOCUMENT),
    required("created_at", TIME, server_default=clock()),
)

sa.Table(
    "raw_data_file_physical_copy",
    metadata,
    required("raw_data_file_id", sa.Uuid, sa.ForeignKey("raw_data_file.id")),
    key("id", BIG_ID),
    required("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("path", sa.Text),
    optional("checksum", CHECKSUM),
    optional("identity", sa.String(200)),
    required("created_at", TIME, server_default=clock()),
    optional("verified_at", TIME),
    required("status", WORD, server_default="present"),
    optional("verified_how", WORD),
    sa.UniqueConstraint("raw_data_file_id", "data_location_id"),
    one_of("status", PHYSICAL_COPY_STATUS, name="physical_copy_status"),
    one_of("verified_how", EVIDENCE),
)

sa.Table(
    "raw_data_package_physical_copy",
    metadata,
    required("raw_data_package_id", BIG_ID, sa.ForeignKey("raw_data_package.id")),
    required("considered", sa.Boolean, server_default=sa.false()),
    key("id", BIG_ID),
    required("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("path", sa.Text),
    optional("checksum", CHECKSUM),
    optional("identity", sa.String(200)),
    required("created_at", TIME, server_default=clock()),
    optional("verified_at", TIME),
    required("status", WORD, server_default="present"),
    optional("verified_how", WORD),
    sa.UniqueConstraint("raw_data_package_id", "data_location_id"),
    sa.UniqueConstraint("data_location_id", "path"),
    one_of("status", PHYSICAL_COPY_STATUS, name="physical_copy_status"),
    one_of("verified_how", EVIDENCE),
    partial(
        "ix_raw_data_package_physical_copy_to_consider",
        "data_location_id",
        "id",
        where="NOT considered AND status = 'present'",
        sqlite_where="considered = 0 AND status = 'present'",
    ),
)

sa.Table(
    "long_term_archive_transfer",
    metadata,
    key("id", BIG_ID),
    required("raw_data_package_id", BIG_ID, sa.ForeignKey("raw_data_package.id")),
    required("data_location_id", sa.Integer, sa.ForeignKey("data_location.id")),
    required("status", WORD, server_default="pending"),
    optional("reason", WORD),
    optional("error", sa.Text),
    required("attempt", sa.Integer, server_default="0"),
    required("attempt_limit", sa.Integer, server_default="5"),
    required("retry_count", sa.Integer, server_default="0"),
    required("send_count", sa.Integer, server_default="0"),
    required("not_before", TIME, server_default=clock()),
    optional("scheduled_at", TIME),
    optional("resend_at", TIME),
    optional("lease_owner", sa.String(255)),
    optional("lease_until", TIME),
    required("created_at", TIME, server_default=clock()),
    optional("started_at", TIME),
    optional("completed_at", TIME),
    optional("evidence", WORD),
    sa.UniqueConstraint("raw_data_package_id", "data_location_id"),
    sa.CheckConstraint("attempt >= 0 AND retry_count >= 0 AND send_count >= 0", name="counts_not_negative"),
    sa.CheckConstraint("attempt <= attempt_limit", name="attempts_bounded"),
    sa.CheckConstraint(
        "(status = 'in_progress') = (lease_until IS NOT NULL AND lease_owner IS NOT NULL)",
        name="lease_while_in_progress",
    ),
    sa.CheckConstraint("status <> 'failed' OR reason IS NOT NULL", name="failed_has_reason"),
    sa.CheckConstraint(
        "(status = 'completed') = (completed_at IS NOT NULL AND evidence IS NOT NULL)",
        name="completed_has_evidence",
    ),
    sa.CheckConstraint("status <> 'scheduled' OR resend_at IS NOT NULL", name="scheduled_has_resend"),
    one_of("status", STATUS),
    one_of("reason", FAILURE_REASON),
    one_of("evidence", EVIDENCE),
    partial(
        "ix_long_term_archive_transfer_due",
        "data_location_id",
        "not_before",
        "id",
        where="status = 'pending'",
    ),
    partial(
        "ix_long_term_archive_transfer_resend",
        "data_location_id",
        "resend_at",
        where="status = 'scheduled'",
    ),
    partial(
        "ix_long_term_archive_transfer_lease",
        "data_location_id",
        "lease_until",
        where="status = 'in_progress'",
    ),
    partial(
        "ix_long_term_archive_transfer_failures",
        "data_location_id",
        "reason",
        where="status = 'failed'",
    ),
    partial(
        "ix_long_term_archive_transfer_finished",
        "data_location_id",
        "completed_at",
        where="status = 'completed'",
    ),
)

sa.Table(
    "long_term_archive_transfer_log",
    metadata,
    key("id", BIG_ID),
    required("long_term_archive_transfer_id", BIG_ID, sa.ForeignKey("long_term_archive_transfer.id")),
    required("at", TIME, server_default=clock()),
    required("verb", WORD),
    required("status", WORD),
    required("attempt", sa.Integer),
    required("actor", sa.String(255)),
    optional("reason", WORD),
    optional("message", sa.Text),
    one_of("verb", VERB),
    one_of("status", STATUS),
    one_of("reason", FAILURE_REASON),
    sa.Index("ix_long_term_archive_transfer_log_operation", "long_term_archive_transfer_id", "id"),
)


def upgrade() -> None:
    metadata.create_all(op.get_bind(), checkfirst=False)
