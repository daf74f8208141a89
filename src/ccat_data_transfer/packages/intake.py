"""Registering: many candidates side by side, their rows in few transactions."""

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from ccat_data_transfer import database, names, packing
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import (
    BadSourceError,
    CCATDataOperationError,
    DatabaseError,
    InputError,
    LocationUnavailableError,
    SourceChangedError,
    SourceMissingError,
    SourceReadError,
)
from ccat_data_transfer.locations import Location
from ccat_data_transfer.packages import buffer, leavings, records
from ccat_data_transfer.packages.records import Found, Known, Registered
from ccat_data_transfer.packing import Candidate

# Packages and files in one transaction, and how long finished ones may wait for it: a crash costs no more than that,
# and no more of them are held in memory.
_BATCH = 200
_FILES = 20_000
_COMMIT_SECONDS = 2.0
_MOST_NOTES = 20


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of all candidates, in the order given, and `notes` that concern the whole."""

    packages: tuple[Registered, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[CCATDataOperationError, ...]:
        """Of the candidates that did not become packages."""
        return tuple(item.error for item in self.packages if item.error is not None)


class _AbortedError(Exception):
    """Carries what `on_progress` raised past those who take errors for a package's own."""


def plan(
    paths: Iterable[str], *, tars_at: Location, packs_at: Location, skip: Iterable[str] = ()
) -> list[packing.Candidate]:
    """What `register` would make packages of; raises when the input as a whole cannot be used."""
    ours = [path for location in (tars_at, packs_at) for path in buffer.own_paths(location)]
    return packing.plan(paths, skip=[*skip, *ours], packs_in=buffer.root_of(packs_at))


def register(
    paths: Iterable[str] = (),
    *,
    tars_at: Location,
    packs_at: Location,
    candidates: Sequence[Candidate] | None = None,
    skip: Iterable[str] = (),
    on_progress: packing.Progress = packing.no_progress,
    on_planned: Callable[[Sequence[Candidate]], None] = lambda _candidates: None,
    workers: int = 2,
    headers: bool = True,
    checksum: Mapping[str, str] | None = None,
) -> Registration:
    """Make packages of what `paths` hold, and see that the bytes lie at a location.

    A tar below the root of `tars_at` is registered where it lies; other tars are copied, folders and files
    packed, into the root of `packs_at`. `candidates` are what `plan` (or `packing.plan`) made of the paths, so that
    they are not looked at twice; `paths` and `skip` are then passed over. `checksum` is what producers recorded,
    `algorithm:hex` by package name; it is checked, and becomes the package's checksum. Idempotent: what is registered
    and untouched is not read again.

    Raises when the input as a whole cannot be used, and for trouble of the database. What concerns one
    package is that package's `error`; the others go on. What `on_progress` raises, from any thread, ends the
    work.
    """
    planned = plan(paths, tars_at=tars_at, packs_at=packs_at, skip=skip) if candidates is None else list(candidates)
    given = _parsed(checksum or {}, planned)
    on_planned(planned)
    leavings.sweep(packs_at)
    has_ended = threading.Event()

    def progress(handled: int) -> None:
        if has_ended.is_set():
            raise concurrent.futures.CancelledError
        try:
            on_progress(handled)
        except BaseException as error:
            raise _AbortedError from error

    job = buffer.Job(tars_at, packs_at, given, headers, progress, leavings.token())
    results: list[Registered] = []
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="register") as pool:
        try:
            for some in records.chunks(planned, _BATCH):
                results += _Batch(pool, some, job, at_once=2 * workers).results()
        except _AbortedError as aborted:
            raise aborted.__cause__ or aborted from None
        finally:
            has_ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return Registration(tuple(results), _bounded(job.notes))


def _bounded(notes: Iterable[str]) -> tuple[str, ...]:
    ordered = sorted(notes)
    more = len(ordered) - _MOST_NOTES
    rest = [f"{more} more notes; `ccat_data_transfer package show` has those of each package"] if more > 0 else []
    return (*ordered[:_MOST_NOTES], *rest)


def _parsed(checksum: Mapping[str, str], planned: Sequence[Candidate]) -> dict[str, Checksum]:
    parsed = {}
    for name, text in checksum.items():
        if not any(candidate.name == name for candidate in planned):
            raise InputError(f"a checksum is given for '{names.shown(name)}', which is not among the packages")
        try:
            parsed[name] = Checksum.parse(text)
        except ValueError as error:
            raise InputError(f"package '{names.shown(name)}': {error}") from error
    return parsed


class _Batch:
    """Candidates that are prepared side by side and recorded as they become ready."""

    def __init__(
        self, pool: concurrent.futures.ThreadPoolExecutor, some: Sequence[Candidate], job: buffer.Job, *, at_once: int
    ) -> None:
        with database.session_scope(read_only=True) as session:
            known = records.look_up(session, (candidate.name for candidate in some))
        self._pool, self._job, self._at_once = pool, job, at_once
        self._left = iter([(n, each, known.get(names.fold(each.name))) for n, each in enumerate(some)])
        self._begun: dict[concurrent.futures.Future[Found | Registered], int] = {}
        self._ready: dict[int, Found] = {}
        self._results: dict[int, Registered] = {}

    def results(self) -> list[Registered]:
        """What became of each, in the order given."""
        since = time.monotonic()
        while self._begin():
            wait = max(0.0, since + _COMMIT_SECONDS - time.monotonic())
            done, _ = concurrent.futures.wait(self._begun, timeout=wait, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                self._take(self._begun.pop(future), future.result())
            files = sum(len(found.packed.members) for found in self._ready.values())
            if files >= _FILES or time.monotonic() >= since + _COMMIT_SECONDS:
                self._record()
                since = time.monotonic()
        self._record()
        return [self._results[position] for position in sorted(self._results)]

    def _begin(self) -> bool:
        """See that enough is being prepared; False when nothing is any more."""
        for position, candidate, known in itertools.islice(self._left, self._at_once - len(self._begun)):
            self._begun[self._pool.submit(_prepare, candidate, known, self._job)] = position
        return bool(self._begun)

    def _take(self, position: int, outcome: Found | Registered) -> None:
        if isinstance(outcome, Found):
            self._ready[position] = outcome
        else:
            self._results[position] = outcome

    def _record(self) -> None:
        ready, self._ready = self._ready, {}
        self._results |= zip(ready, _record(list(ready.values())), strict=True)


def _prepare(candidate: Candidate, known: Known | None, job: buffer.Job) -> Found | Registered:
    try:
        return buffer.prepare(candidate, known, job)
    except CCATDataOperationError as error:
        return records.failed(candidate.name, _of_registering(error))


def _of_registering(error: CCATDataOperationError) -> CCATDataOperationError:
    """The error with what is to be done about it now: those of storage speak of operations that are retried."""
    match error:
        case SourceChangedError():
            return SourceChangedError(
                str(error), remedy="it changes while it is packed; wait until it is complete and run the same again"
            )
        case SourceMissingError():
            return InputError(str(error), remedy="bring it back, or name only what is there, and run the same again")
        case BadSourceError() | SourceReadError():
            return InputError(
                str(error), remedy="make it a file or folder that this user can read, and run the same again"
            )
        case LocationUnavailableError():
            return LocationUnavailableError(
                str(error),
                condition=error.condition,
                location=error.location,
                remedy="make it usable (mounted, writable, with room), and run the same again",
            )
    return error


def _record(found: Sequence[Found]) -> list[Registered]:
    if not found:
        return []
    refusal = None
    for _ in range(2):
        try:
            with database.session_scope() as session:
                return records.write(session, found)
        except DatabaseError as error:
            # Another process wrote one of the names between our look and our insert: look again.
            if not isinstance(error.__cause__, IntegrityError):
                raise
            refusal = error
    if len(found) == 1 and refusal is not None:
        return [records.failed(found[0].name, refusal)]
    return [registered for item in found for registered in _record([item])]
