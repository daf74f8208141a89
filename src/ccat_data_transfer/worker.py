"""The worker's procedure: one attempt of one operation, from claim to record.

The same for its three callers: the Celery task, a worker without a broker, and one operation in the foreground.
No transaction is open while bytes move.
"""

import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from ccat_data_transfer import (
    database,
    dispatch,
    leases,
    logs,
    names,
    operations,
    retry,
    settings,
    sidecar,
    storage,
    topology,
)
from ccat_data_transfer.checksums import DEFAULT_ALGORITHM, Checksum
from ccat_data_transfer.exceptions import (
    BadNameError,
    BadSourceError,
    CCATDataOperationError,
    ConfigurationError,
    DatabaseError,
    DataCorruptionError,
    DestinationFileExistsError,
    LeaseLostError,
    LocationUnavailableError,
    NoChecksumError,
    SourceChangedError,
    SourceMissingError,
    SourceReadError,
    SourceUnavailableError,
    StoppedError,
)
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage.base import Progress, Reader, Receipt, Storage, no_progress

log = logs.get(__name__)

LONGEST_INSISTING_SECONDS = 10.0
JOIN_SECONDS = 5.0


class Ending(enum.StrEnum):
    """How a call of `carry_out` ended."""

    COMPLETED = "completed"
    RETRY = "retry"
    SNOOZE = "snooze"
    FAIL = "fail"
    LOST = "lost"  # the attempt was no longer ours; nothing was written
    NOT_CLAIMED = "not_claimed"


@dataclass(frozen=True, slots=True)
class Result:
    """What `carry_out` did; the same is in the database."""

    operation_id: object
    ending: Ending
    attempt: int = 0
    package: str = ""
    bytes: int = 0
    adopted: bool = False  # the bytes were there already, and were verified
    error: BaseException | None = None


def carry_out(
    long_term_archive_transfer_id: object,
    session: Session | None = None,
    *,
    queues: Collection[str] | None = None,
    on_progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """The worker's procedure: claim, copy, verify, record.

    Never raises for a failed attempt: retry, snooze and failure are decided and recorded. Raises `DatabaseError` when
    the database could not be asked for the claim. A database that goes away later is waited for as long as the lease
    lives; after that the attempt is lost, and the operation is rescued. With `session` given that one is
    used, and committed at each step. `should_stop` is asked while bytes move; when it says yes the attempt is given
    back.
    """
    chosen = settings.get()
    owner = leases.Owner.of_this_process()
    began = _clock()
    with _transaction(session) as own:
        claim = operations.claim(own, long_term_archive_transfer_id, owner, chosen.lease_seconds, queues=queues)
        if isinstance(claim, operations.NotClaimed) and claim.exists:
            # A message that comes back after its worker died meets the dead worker's lease.
            operations.rescue_one(own, claim.operation_id)
    if isinstance(claim, operations.NotClaimed):
        log.info("operation_not_claimed", operation_id=repr(claim.operation_id)[:100], why=claim.why)
        return Result(long_term_archive_transfer_id, Ending.NOT_CLAIMED)
    log.info("operation_claimed", **_context(claim))
    with _Heartbeat(claim, session, began) as heartbeat:

        def progress(count: int) -> None:
            heartbeat.check()
            if should_stop():
                raise StoppedError("asked to stop")
            on_progress(count)

        try:
            receipt = _carry(claim, session, progress)
            _record(claim, receipt, session, heartbeat)
        except LeaseLostError as error:
            return _lost(claim, error)
        except BaseException as error:  # MemoryError and a library's SystemExit too: they must be counted, not loop
            try:
                result = _settle(claim, session, error, heartbeat)
            except LeaseLostError as lost:
                result = _lost(claim, lost)
            if isinstance(error, KeyboardInterrupt | GeneratorExit):
                raise
            return result
    log.info(
        "operation_completed",
        **_context(claim),
        bytes=receipt.size,
        evidence=receipt.evidence,
        adopted=receipt.adopted,
    )
    return Result(
        claim.operation_id, Ending.COMPLETED, claim.attempt, claim.package, receipt.size, adopted=receipt.adopted
    )


def _context(claim: operations.Claim) -> dict[str, Any]:
    return {
        "operation_id": claim.operation_id,
        "attempt": claim.attempt,
        "package": claim.package,
        "location": str(claim.destination),
    }


@contextmanager
def _transaction(session: Session | None) -> Iterator[Session]:
    """One transaction on the caller's session, or on one of our own."""
    if session is None:
        with database.session_scope() as own:
            yield own
        return
    try:
        with database.translated_errors():
            yield session
            session.commit()
    except BaseException:
        session.rollback()
        raise


def _clock() -> float:
    """Seconds that pass also while the host sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Heartbeat:
    """Extends the lease of an attempt from its own thread and connection, and tells when it is lost."""

    def __init__(self, claim: operations.Claim, session: Session | None, began: float) -> None:
        """`began` is a moment before the claim: the lease is counted from there."""
        self._claim = claim
        self._bind = _engine_of(session)
        self._ended = threading.Event()
        self._is_refused = False
        self._confirmed = began
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{claim.token}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._ended.set()
        # A heartbeat that hangs in the network is left behind; it can do no harm but extend a lease that is ours.
        self._thread.join(JOIN_SECONDS)

    def check(self) -> None:
        """Raise `LeaseLostError` when the attempt must stop.

        By the time since the last confirmed heartbeat, whatever became of the ones after it: a process that was
        frozen stops here, and so does one whose database does not answer.
        """
        # One heartbeat before the end, so that what follows a check is still within the lease.
        limit = settings.get().lease_seconds - settings.get().heartbeat
        if self._is_refused or _clock() - self._confirmed > limit:
            raise LeaseLostError(
                f"attempt {self._claim.attempt} of operation {self._claim.operation_id} lost its lease"
            )

    def wait(self, seconds: float) -> None:
        """Wait while the lease is being extended."""
        self._ended.wait(seconds)

    def _run(self) -> None:
        chosen = settings.get()
        claim = self._claim
        while not self._ended.wait(chosen.heartbeat):
            asked = _clock()
            try:
                with database.session_scope(self._bind) as session:
                    held = operations.heartbeat(session, claim.operation_id, claim.attempt, chosen.lease_seconds)
            except DatabaseError as error:
                log.warning("heartbeat_failed", **_context(claim), error=str(error))
                continue
            if not held:
                self._is_refused = True
                return
            self._confirmed = asked


def _insist(claim: operations.Claim, heartbeat: _Heartbeat, tell: Callable[[], None]) -> None:
    """Tell the database something, again and again while the lease lives.

    Raises `LeaseLostError` when it does not live that long: the operation is somebody else's to settle then.
    """
    delay = 0.2
    while True:
        try:
            tell()
        except DatabaseError as error:
            log.warning("database_unanswered", **_context(claim), error=str(error), again_in=delay)
        else:
            return
        heartbeat.check()
        heartbeat.wait(delay)
        delay = min(delay * 2, LONGEST_INSISTING_SECONDS)


def _engine_of(session: Session | None) -> Engine | None:
    """The engine behind a caller's session: a heartbeat never shares its connection."""
    bind = session.get_bind() if session is not None else None
    return bind.engine if isinstance(bind, Connection) else bind


def _lost(claim: operations.Claim, error: LeaseLostError) -> Result:
    log.warning("lease_lost", **_context(claim), error=str(error))
    return Result(claim.operation_id, Ending.LOST, claim.attempt, claim.package, error=error)


def _carry(claim: operations.Claim, session: Session | None, progress: Progress) -> Receipt:
    """Bring the bytes and their documents to the destination; no transaction is open while they move."""
    names.check_package_name(claim.package)
    expected = _expected_checksum(claim)
    destination = _open_destination(claim.destination, _engine_of(session))
    if claim.attempt > 1:
        _clear_up(claim, destination)
    receipt = _put(claim, destination, expected, progress)
    with _transaction(session) as own:
        described = operations.describe(own, claim)
    _put_documents(claim, destination, receipt, described)
    return receipt


def _clear_up(claim: operations.Claim, destination: Storage) -> None:
    """Remove what earlier attempts of this operation left behind. The claim has fenced them: should one still run,
    it finds its temporary gone and publishes nothing.
    """
    earlier = {f"{claim.operation_id}.{attempt}" for attempt in range(1, claim.attempt)}
    for leaving in destination.sweep(earlier.__contains__, delete=True):
        log.info("leaving_removed", **_context(claim), token=leaving.token, bytes=leaving.size)


def _open_destination(location: Location, bind: Engine | None) -> Storage:
    """The backend of a destination, marked as ours at its first use. What is wrong with it is no package's fault."""
    try:
        if location.volume_id is None:
            location = dataclasses.replace(location, volume_id=topology.enrol(location.id, bind))
        return storage.open_storage(location)
    except ConfigurationError as error:
        raise _misconfigured(location, error) from error


def _expected_checksum(claim: operations.Claim) -> Checksum:
    if not claim.checksum:
        raise NoChecksumError(f"package '{claim.package}' has no recorded checksum")
    try:
        return Checksum.parse(claim.checksum)
    except ValueError as error:
        raise NoChecksumError(f"package '{claim.package}': {error}") from None


def _put(claim: operations.Claim, destination: Storage, expected: Checksum, progress: Progress) -> Receipt:
    """Store the package from the best source that has it: the next one is tried when a source is at fault.

    When none will do, the fault that may pass counts: nothing fails for good while a buffer may come back.
    """
    faults: list[CCATDataOperationError] = []
    for source in claim.sources:
        try:
            with _open_source(claim, source) as reader:
                return destination.put(
                    reader, names.object_key(claim.package), expected, token=claim.token, on_progress=progress
                )
        except _SOURCE_FAULTS as error:
            faults.append(error)
        except LocationUnavailableError as error:
            if error.location == str(claim.destination):
                raise
            faults.append(_unavailable_source(error))
        log.warning("source_unusable", **_context(claim), source=str(source.location), error=str(faults[-1]))
    missing = SourceMissingError(
        f"package '{claim.package}' has no present copy in an active buffer of site '{claim.destination.site}'"
    )
    raise next((fault for fault in faults if fault.retryable), faults[0] if faults else missing)


_SOURCE_FAULTS = (
    BadNameError,
    SourceMissingError,
    BadSourceError,
    DataCorruptionError,
    SourceChangedError,
    SourceReadError,
    SourceUnavailableError,
)


def _open_source(claim: operations.Claim, source: operations.Source) -> Reader:
    """Open a copy of the package; whatever is wrong is the fault of this copy or of its place."""
    try:
        reader = storage.open_storage(source.location).open(source.path)
    except ConfigurationError as error:
        raise _misconfigured(source.location, error) from error
    if reader.size != claim.size:
        reader.close()
        raise DataCorruptionError(
            f"package '{claim.package}' at '{source.location}' has {reader.size} bytes, recorded are {claim.size}"
        )
    return reader


def _unavailable_source(error: LocationUnavailableError) -> SourceUnavailableError:
    return SourceUnavailableError(str(error), condition=error.condition, location=error.location, remedy=error.remedy)


def _misconfigured(location: Location, error: ConfigurationError) -> LocationUnavailableError:
    return LocationUnavailableError(
        str(error), condition=PauseReason.MISCONFIGURED, location=str(location), remedy=error.remedy
    )


def _put_documents(
    claim: operations.Claim, destination: Storage, receipt: Receipt, described: operations.Description
) -> None:
    """Store the manifest and the sidecar; those of an earlier attempt are adopted when they speak of these bytes."""
    manifest = sidecar.manifest(claim.package, receipt.checksums[DEFAULT_ALGORITHM])
    verified = sidecar.CustodyEvent(
        datetime.now(UTC), "verify", leases.actor(), str(claim.destination), str(receipt.evidence)
    )
    document = sidecar.build(
        package=claim.package,
        size=receipt.size,
        recorded_checksum=str(claim.checksum),
        checksums=receipt.checksums,
        files=described.files,
        files_left_out=described.files_left_out,
        metadata=described.metadata,
        custody=[*described.custody, verified],
    )
    manifest_key, sidecar_key = names.manifest_key(claim.package), names.sidecar_key(claim.package)
    taken = destination.put_documents({manifest_key: manifest, sidecar_key: document}, token=claim.token)
    for key in taken:
        found = destination.read_document(key) or b""
        is_ours = (
            found == manifest if key == manifest_key else sidecar.vouches_for(found, claim.package, receipt.checksums)
        )
        if not is_ours:
            raise DestinationFileExistsError(f"document '{key}' at '{claim.destination}' is about other bytes")


def _record(claim: operations.Claim, receipt: Receipt, session: Session | None, heartbeat: _Heartbeat) -> None:
    """Record the copy. A commit whose answer was lost is looked up, with a new connection, before it is repeated."""
    is_unsure = False

    def tell() -> None:
        nonlocal is_unsure
        if is_unsure:
            with database.session_scope(_engine_of(session), read_only=True) as fresh:
                recorded = operations.is_recorded(fresh, claim.operation_id, claim.attempt)
            if recorded:
                return
            if recorded is False:
                raise LeaseLostError(f"operation {claim.operation_id} went on without attempt {claim.attempt}")
        is_unsure = True
        with _transaction(session) as own:
            operations.record(own, claim, receipt)

    _insist(claim, heartbeat, tell)


def _settle(claim: operations.Claim, session: Session | None, error: BaseException, heartbeat: _Heartbeat) -> Result:
    """Decide and record what follows a failed attempt."""
    decision = retry.decide(error, attempt=claim.attempt, attempts_left=claim.attempts_left, policy=operations.policy())
    moved = False

    def tell() -> None:
        nonlocal moved
        with _transaction(session) as own:
            moved = operations.settle(own, claim.operation_id, claim.attempt, decision, error)

    _insist(claim, heartbeat, tell)
    ending = Ending(decision.outcome) if moved else Ending.LOST
    log.warning(
        "attempt_failed",
        **_context(claim),
        ending=str(ending),
        reason=str(decision.reason),
        error=str(error) or type(error).__name__,
        due_in_seconds=round(decision.delay, 1),
        exc_info=not isinstance(error, CCATDataOperationError),
    )
    return Result(claim.operation_id, ending, claim.attempt, claim.package, error=error)


def local_workers(stop: threading.Event | None = None) -> dispatch.LocalWorkers:
    """Threads that carry operations in this process."""
    asked = stop or threading.Event()

    def carry(operation_id: int) -> bool:
        return carry_out(operation_id, should_stop=asked.is_set).ending is not Ending.NOT_CLAIMED

    return dispatch.LocalWorkers(carry, concurrency=settings.get().worker_concurrency, stop=asked)
