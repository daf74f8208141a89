"""Registering: many candidates side by side, their rows in few transactions."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from ccat_data_transfer import database, names, packing
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import CCATDataOperationError, DatabaseError, InputError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.packages import buffer, records
from ccat_data_transfer.packages.records import Found, Known, Registered
from ccat_data_transfer.packing import Candidate

# Packages in one transaction, and how long finished ones may wait for it: a crash costs no more than that.
_BATCH = 200
_COMMIT_SECONDS = 2.0


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


def register(
    paths: Iterable[str],
    *,
    tars_at: Location,
    packs_at: Location,
    skip: Iterable[str] = (),
    on_progress: packing.Progress = packing.no_progress,
    on_planned: Callable[[Sequence[Candidate]], None] = lambda _candidates: None,
    workers: int = 2,
    headers: bool = True,
    checksum: Mapping[str, str] | None = None,
) -> Registration:
    """Make packages of what `paths` hold, and see that the bytes lie at a location.

    A tar below the root of `tars_at` is registered where it lies; other tars are copied, folders and files
    packed, into the root of `packs_at`. `checksum` is what producers recorded, `algorithm:hex` by package
    name; it is checked, and becomes the package's checksum. Idempotent: what is registered and untouched is
    not read again.

    Raises when the input as a whole cannot be used, and for trouble of the database. What concerns one
    package is that package's `error`; the others go on. What `on_progress` raises, from any thread, ends the
    work.
    """
    ours = [path for location in (tars_at, packs_at) for path in buffer.own_paths(location)]
    planned = packing.plan(paths, skip=[*skip, *ours], packs_in=buffer.root_of(packs_at))
    given = _parsed(checksum or {}, planned)
    on_planned(planned)
    has_ended = threading.Event()

    def progress(handled: int) -> None:
        if has_ended.is_set():
            raise concurrent.futures.CancelledError
        try:
            on_progress(handled)
        except BaseException as error:
            raise _AbortedError from error

    job = buffer.Job(tars_at, packs_at, given, headers, progress)
    results: list[Registered] = []
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="register") as pool:
        try:
            for some in records.chunks(planned, _BATCH):
                results += _register_some(pool, some, job)
        except _AbortedError as aborted:
            raise aborted.__cause__ or aborted from None
        finally:
            has_ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return Registration(tuple(results), tuple(job.notes))


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


def _register_some(
    pool: concurrent.futures.ThreadPoolExecutor, some: Sequence[Candidate], job: buffer.Job
) -> Iterator[Registered]:
    """Prepare candidates side by side and record them as they become ready; results in the order of `some`."""
    with database.session_scope(read_only=True) as session:
        known = records.look_up(session, (candidate.name for candidate in some))
    positions = {
        pool.submit(_prepare, candidate, known.get(names.fold(candidate.name)), job): position
        for position, candidate in enumerate(some)
    }
    results: dict[int, Registered] = {}
    waiting = set(positions)
    while waiting:
        ready, waiting = concurrent.futures.wait(
            waiting, timeout=_COMMIT_SECONDS, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        outcomes = {positions[future]: future.result() for future in ready}
        found = {position: outcome for position, outcome in outcomes.items() if isinstance(outcome, Found)}
        results |= {position: outcome for position, outcome in outcomes.items() if isinstance(outcome, Registered)}
        results |= zip(found, _record(list(found.values())), strict=True)
    yield from (results[position] for position in sorted(results))


def _prepare(candidate: Candidate, known: Known | None, job: buffer.Job) -> Found | Registered:
    try:
        return buffer.prepare(candidate, known, job)
    except CCATDataOperationError as error:
        return records.failed(candidate.name, error)


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
