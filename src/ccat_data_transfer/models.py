"""The tables.

Each class says what one row means. What must hold is a constraint of the database, not a hope of the code; what the
manager and `status` ask for has its index.
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column, relationship

from ccat_data_transfer import names
from ccat_data_transfer.database import UTCDateTime, utcnow
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import (
    Evidence,
    FailureReason,
    PackageState,
    PauseReason,
    PhysicalCopyStatus,
    Status,
    Verb,
)


class Base(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can name them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UTCDateTime(),
        dict[str, Any]: sa.JSON().with_variant(JSONB(), "postgresql"),
    }


def _enum(values: type[StrEnum], name: str) -> sa.Enum:
    """A closed vocabulary as text with a check, the same on every database and easy to extend."""
    return sa.Enum(
        values,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=40,
        values_callable=lambda members: [member.value for member in members],
    )


BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows only in an INTEGER column


class Site(Base):
    """A place: an observatory or a data centre."""

    __tablename__ = "site"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    short_name: Mapped[str] = mapped_column(sa.String(63), unique=True)
    location: Mapped[str | None] = mapped_column(sa.Text)
    # Which active buffers and archives `operations.create` last saw here; when they change, every copy is looked at
    # again. It is how a new archive gets the packages that were registered before it.
    seen_topology: Mapped[str] = mapped_column(sa.Text, default="", server_default="")

    data_locations: Mapped[list["DataLocation"]] = relationship(back_populates="site")


class DataLocation(Base):
    """A storage place at a site. `paused_until` and `pause_reason` are set while it takes no work."""

    __tablename__ = "data_location"

    id: Mapped[int] = mapped_column(primary_key=True)
    site_id: Mapped[int] = mapped_column(sa.ForeignKey("site.id"))
    name: Mapped[str] = mapped_column(sa.String(63))
    location_type: Mapped[LocationType] = mapped_column(_enum(LocationType, "location_type"))
    storage_type: Mapped[StorageType] = mapped_column(_enum(StorageType, "storage_type"))
    # Smaller is preferred, as in "priority 1".
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    active: Mapped[bool] = mapped_column(default=True, server_default=sa.true())
    volume_id: Mapped[str | None] = mapped_column(sa.String(64))
    required_evidence: Mapped[Evidence] = mapped_column(
        _enum(Evidence, "evidence"),
        default=Evidence.EVICTED_UNPROVED,
        server_default=Evidence.EVICTED_UNPROVED.value,
    )
    paused_until: Mapped[datetime | None]
    pause_reason: Mapped[PauseReason | None] = mapped_column(_enum(PauseReason, "pause_reason"))
    pause_message: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(server_default=utcnow())

    site: Mapped[Site] = relationship(back_populates="data_locations", lazy="joined", innerjoin=True)

    __mapper_args__ = {
        "polymorphic_on": "storage_type",
        "with_polymorphic": "*",
    }
    __table_args__ = (
        sa.UniqueConstraint("site_id", "name"),
        sa.Index("ix_data_location_active", "location_type", "active"),
        sa.CheckConstraint("paused_until IS NULL OR pause_reason IS NOT NULL", name="pause_has_reason"),
    )

    def options(self) -> dict[str, str]:
        """What only the storage backend understands."""
        return _options(self.storage_type, lambda name: getattr(self, name))

    def value(self) -> Location:
        """This location without its row, for layers that know no database."""
        return Location(
            id=self.id,
            site=self.site.short_name,
            name=self.name,
            location_type=self.location_type,
            storage_type=self.storage_type,
            volume_id=self.volume_id,
            required_evidence=self.required_evidence,
            options=self.options(),
        )


class DiskDataLocation(DataLocation):
    """A directory. `host` says on which machine, when it is not every worker's own."""

    __tablename__ = "disk_data_location"

    data_location_id: Mapped[int] = mapped_column(sa.ForeignKey("data_location.id"), primary_key=True)
    path: Mapped[str] = mapped_column(sa.Text)
    host: Mapped[str | None] = mapped_column(sa.String(255))
    user: Mapped[str | None] = mapped_column(sa.String(255))

    __mapper_args__ = {"polymorphic_identity": StorageType.DISK, "polymorphic_load": "inline"}


class S3DataLocation(DataLocation):
    """A bucket of an object store, below a prefix."""

    __tablename__ = "s3_data_location"

    data_location_id: Mapped[int] = mapped_column(sa.ForeignKey("data_location.id"), primary_key=True)
    bucket_name: Mapped[str] = mapped_column(sa.String(255))
    prefix: Mapped[str] = mapped_column(sa.Text, default="", server_default="")
    region: Mapped[str | None] = mapped_column(sa.String(63))
    endpoint_url: Mapped[str | None] = mapped_column(sa.Text)

    __mapper_args__ = {"polymorphic_identity": StorageType.S3, "polymorphic_load": "inline"}


class TapeDataLocation(DataLocation):
    """A tape library, reached through the file system at `mount_path`."""

    __tablename__ = "tape_data_location"

    data_location_id: Mapped[int] = mapped_column(sa.ForeignKey("data_location.id"), primary_key=True)
    library_name: Mapped[str] = mapped_column(sa.String(255))
    mount_path: Mapped[str] = mapped_column(sa.Text)

    __mapper_args__ = {"polymorphic_identity": StorageType.TAPE, "polymorphic_load": "inline"}


# What only the backend of a storage type understands: columns of its own table.
_OPTIONS: dict[StorageType, tuple[str, ...]] = {
    StorageType.DISK: ("path", "host"),
    StorageType.S3: ("bucket_name", "prefix", "region", "endpoint_url"),
    StorageType.TAPE: ("library_name", "mount_path"),
}


def _options(storage_type: StorageType, get: Callable[[str], str | None]) -> dict[str, str]:
    return {name: value for name in _OPTIONS[storage_type] if (value := get(name)) is not None}


def select_locations() -> sa.Select[Any]:
    """All columns that make a `Location`, for `location_of`: cheaper than mapped objects where every package asks."""
    place, site = DataLocation.__table__, Site.__table__
    kinds = (DiskDataLocation.__table__, S3DataLocation.__table__, TapeDataLocation.__table__)
    joined = place.join(site, site.c.id == place.c.site_id)
    for kind in kinds:
        joined = joined.outerjoin(kind, kind.c.data_location_id == place.c.id)
    own = [column for kind in kinds for column in kind.c if column.name in sum(_OPTIONS.values(), ())]
    return sa.select(place, site.c.short_name, *own).select_from(joined)


def location_of(row: sa.Row[Any]) -> Location:
    """The location in a row of `select_locations`."""
    return Location(
        id=row.id,
        site=row.short_name,
        name=row.name,
        location_type=row.location_type,
        storage_type=row.storage_type,
        volume_id=row.volume_id,
        required_evidence=row.required_evidence,
        options=_options(row.storage_type, lambda name: getattr(row, name)),
    )


class RawDataPackage(Base):
    """A tar of related raw data files. Its name is the file name and is the same at every site."""

    __tablename__ = "raw_data_package"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(255), unique=True)
    # What a case-insensitive or normalising file system would make of the name: two that agree would collide there.
    folded_name: Mapped[str] = mapped_column(
        sa.String(512),
        unique=True,
        default=lambda context: names.fold(context.get_current_parameters()["name"]),
    )
    size: Mapped[int] = mapped_column(sa.BigInteger)
    checksum: Mapped[str | None] = mapped_column(sa.String(160))  # algorithm:hex; without one it is never ready
    state: Mapped[PackageState] = mapped_column(
        _enum(PackageState, "package_state"),
        default=PackageState.WAITING,
        server_default=PackageState.WAITING.value,
    )
    created_at: Mapped[datetime] = mapped_column(server_default=utcnow())

    raw_data_files: Mapped[list["RawDataFile"]] = relationship(back_populates="raw_data_package")
    physical_copies: Mapped[list["RawDataPackagePhysicalCopy"]] = relationship(back_populates="raw_data_package")
    package_metadata: Mapped["RawDataPackageMetadata | None"] = relationship(back_populates="raw_data_package")

    __table_args__ = (
        sa.CheckConstraint("size >= 0", name="size_not_negative"),
        sa.Index("ix_raw_data_package_state", "state", "id"),
    )


class RawDataFile(Base):
    """One file of an instrument. `path` is where it lies inside its package."""

    __tablename__ = "raw_data_file"

    id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True, default=uuid.uuid4)
    raw_data_package_id: Mapped[int | None] = mapped_column(sa.ForeignKey("raw_data_package.id"))
    name: Mapped[str] = mapped_column(sa.String(255))
    path: Mapped[str] = mapped_column(sa.Text)
    size: Mapped[int] = mapped_column(sa.BigInteger)
    checksum: Mapped[str | None] = mapped_column(sa.String(160))
    modified_at: Mapped[datetime | None]

    raw_data_package: Mapped[RawDataPackage | None] = relationship(back_populates="raw_data_files")

    __table_args__ = (
        sa.UniqueConstraint("raw_data_package_id", "path"),
        sa.CheckConstraint("size >= 0", name="size_not_negative"),
    )


class RawDataPackageMetadata(Base):
    """What the sidecar tells of a package beyond its bytes: ObsCore terms and the headers they were read from."""

    __tablename__ = "raw_data_package_metadata"

    raw_data_package_id: Mapped[int] = mapped_column(sa.ForeignKey("raw_data_package.id"), primary_key=True)
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=utcnow())

    raw_data_package: Mapped[RawDataPackage] = relationship(back_populates="package_metadata")


class PhysicalCopy(Base):
    """These bytes are at this data location, under `path` below its root.

    A table for each kind of thing that is copied, so that "one copy of a thing at a place" is a constraint.
    """

    __abstract__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    data_location_id: Mapped[int] = mapped_column(sa.ForeignKey("data_location.id"))
    path: Mapped[str] = mapped_column(sa.Text)
    checksum: Mapped[str | None] = mapped_column(sa.String(160))
    # What the place said of the bytes when they were last read (`storage.base.ObjectStat.identity`).
    identity: Mapped[str | None] = mapped_column(sa.String(200))
    created_at: Mapped[datetime] = mapped_column(server_default=utcnow())
    verified_at: Mapped[datetime | None]

    @declared_attr
    @classmethod
    def status(cls) -> Mapped[PhysicalCopyStatus]:
        """State of the bytes."""
        return mapped_column(
            _enum(PhysicalCopyStatus, "physical_copy_status"),
            default=PhysicalCopyStatus.PRESENT,
            server_default=PhysicalCopyStatus.PRESENT.value,
        )

    @declared_attr
    @classmethod
    def verified_how(cls) -> Mapped[Evidence | None]:
        """By which evidence the bytes were last verified."""
        return mapped_column(_enum(Evidence, "verified_how"))

    @declared_attr
    @classmethod
    def data_location(cls) -> Mapped[DataLocation]:
        """Where the bytes are."""
        return relationship(DataLocation)


class RawDataFilePhysicalCopy(PhysicalCopy):
    """A copy of one raw data file, outside of any package."""

    __tablename__ = "raw_data_file_physical_copy"

    raw_data_file_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("raw_data_file.id"))

    __table_args__ = (sa.UniqueConstraint("raw_data_file_id", "data_location_id"),)


class RawDataPackagePhysicalCopy(PhysicalCopy):
    """A copy of a raw data package.

    `considered` says that `operations.create` has made every operation that this copy calls for.
    """

    __tablename__ = "raw_data_package_physical_copy"

    raw_data_package_id: Mapped[int] = mapped_column(sa.ForeignKey("raw_data_package.id"))
    considered: Mapped[bool] = mapped_column(default=False, server_default=sa.false())

    raw_data_package: Mapped[RawDataPackage] = relationship(back_populates="physical_copies")

    __table_args__ = (
        sa.UniqueConstraint("raw_data_package_id", "data_location_id"),
        sa.UniqueConstraint("data_location_id", "path"),
        sa.Index(
            "ix_raw_data_package_physical_copy_to_consider",
            "data_location_id",
            "id",
            sqlite_where=sa.text("considered = 0 AND status = 'present'"),
            postgresql_where=sa.text("NOT considered AND status = 'present'"),
        ),
    )


class LongTermArchiveTransfer(Base):
    """An operation: carry one raw data package to one long-term archive location. The row is the queue.

    `attempt` counts claims and fences late writers; a claim needs `attempt < attempt_limit`, and a snooze or an
    operator's retry raises the limit, never lowers the count. `not_before` is when the operation is due;
    `resend_at` when an unclaimed message counts as lost.
    """

    __tablename__ = "long_term_archive_transfer"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    raw_data_package_id: Mapped[int] = mapped_column(sa.ForeignKey("raw_data_package.id"))
    data_location_id: Mapped[int] = mapped_column(sa.ForeignKey("data_location.id"))
    status: Mapped[Status] = mapped_column(
        _enum(Status, "status"), default=Status.PENDING, server_default=Status.PENDING.value
    )
    reason: Mapped[FailureReason | None] = mapped_column(_enum(FailureReason, "reason"))
    error: Mapped[str | None] = mapped_column(sa.Text)
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")
    attempt_limit: Mapped[int] = mapped_column(default=5, server_default="5")
    retry_count: Mapped[int] = mapped_column(default=0, server_default="0")
    send_count: Mapped[int] = mapped_column(default=0, server_default="0")  # messages since it was last claimed
    not_before: Mapped[datetime] = mapped_column(server_default=utcnow())
    scheduled_at: Mapped[datetime | None]
    resend_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=utcnow())
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    evidence: Mapped[Evidence | None] = mapped_column(_enum(Evidence, "evidence"))

    raw_data_package: Mapped[RawDataPackage] = relationship()
    data_location: Mapped[DataLocation] = relationship()
    logs: Mapped[list["LongTermArchiveTransferLog"]] = relationship(
        back_populates="long_term_archive_transfer", order_by="LongTermArchiveTransferLog.id"
    )

    __table_args__ = (
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
        *(
            sa.Index(
                f"ix_long_term_archive_transfer_{name}",
                *columns,
                sqlite_where=sa.text(f"status = '{status.value}'"),
                postgresql_where=sa.text(f"status = '{status.value}'"),
            )
            for name, status, columns in (
                ("due", Status.PENDING, ("data_location_id", "not_before", "id")),
                ("resend", Status.SCHEDULED, ("data_location_id", "resend_at")),
                ("lease", Status.IN_PROGRESS, ("data_location_id", "lease_until")),
                ("failures", Status.FAILED, ("data_location_id", "reason")),
                ("finished", Status.COMPLETED, ("data_location_id", "completed_at")),
            )
        ),
    )


class LongTermArchiveTransferLog(Base):
    """One change of an operation, written in the transaction that made it. Only ever inserted."""

    __tablename__ = "long_term_archive_transfer_log"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    long_term_archive_transfer_id: Mapped[int] = mapped_column(sa.ForeignKey("long_term_archive_transfer.id"))
    at: Mapped[datetime] = mapped_column(server_default=utcnow())
    verb: Mapped[Verb] = mapped_column(_enum(Verb, "verb"))
    status: Mapped[Status] = mapped_column(_enum(Status, "status"))  # the status that it led to
    attempt: Mapped[int]
    actor: Mapped[str] = mapped_column(sa.String(255))
    reason: Mapped[FailureReason | None] = mapped_column(_enum(FailureReason, "reason"))
    message: Mapped[str | None] = mapped_column(sa.Text)

    long_term_archive_transfer: Mapped[LongTermArchiveTransfer] = relationship(back_populates="logs")

    __table_args__ = (sa.Index("ix_long_term_archive_transfer_log_operation", "long_term_archive_transfer_id", "id"),)
