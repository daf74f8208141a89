"""What `archive` reports: one line for each package and destination, and whether all that was asked is true."""

import contextlib
import enum
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccat_data_transfer import database, names, reports, storage
from ccat_data_transfer.cli import output, preparation
from ccat_data_transfer.exceptions import CCATDataOperationError
from ccat_data_transfer.locations import Location, StorageType
from ccat_data_transfer.packages import Registered, Registration
from ccat_data_transfer.states import FailureReason, Status

NOT_ALL = 1
_AGAIN = "run the same command again"
GO_ON = f"{_AGAIN} to go on"
_ELSEWHERE = "another process is carrying it"
# Causes, what matters most first.
_LOST, _REFUSED, _FAILED, _WAITS = range(4)
LOST = "an archive lost an object that had been verified: find out why before anything else"


class Outcome(enum.StrEnum):
    """What became of one package at one destination."""

    ARCHIVED = "archived"
    ADOPTED = "adopted"  # the same bytes were there already, and were verified
    ALREADY_ARCHIVED = "already archived"
    FAILED = "failed"
    WAITING = "waiting"


_GOOD = frozenset({Outcome.ARCHIVED, Outcome.ADOPTED, Outcome.ALREADY_ARCHIVED})


@dataclass(frozen=True, slots=True)
class Copy:
    """One package at one destination, as it is printed."""

    location: str
    outcome: Outcome
    status: Status
    reason: str | None
    error: str | None
    path: str
    evidence: str | None
    attempt: int
    operation_id: int

    @property
    def words(self) -> str:
        """The outcome with its reason."""
        if self.outcome in _GOOD:
            return self.outcome
        why = ": ".join(part for part in (self.reason, self.error) if part)
        return f"{self.outcome}: {why}" if why else self.outcome


@dataclass(frozen=True, slots=True)
class Package:
    """One package that was asked for; `error` when it could not be registered."""

    name: str
    id: int | None
    size: int
    checksum: str | None
    outcome: Outcome
    error: str | None
    destinations: tuple[Copy, ...]


@dataclass
class Report:
    """All that was asked for and what became of it."""

    registration: Registration
    locations: Sequence[Location]
    transfers: Sequence[reports.Transfer]
    adopted: Collection[int]
    already: Collection[int]
    pauses: Mapping[str, reports.Place] = field(default_factory=dict)  # of the destinations that are paused, by name
    was_interrupted: bool = False
    packages: list[Package] = field(init=False)
    lost: set[int] = field(init=False, default_factory=set)  # operations whose object is not what was archived
    hints: list[str] = field(init=False, default_factory=list)  # each once, what matters most first

    def __post_init__(self) -> None:
        by_package: dict[str, dict[tuple[str, str], reports.Transfer]] = {}
        for transfer in self.transfers:
            by_package.setdefault(transfer.package, {})[transfer.site, transfer.location] = transfer
        self.packages = [self._package(item, by_package.get(item.name, {})) for item in self.registration.packages]
        self.hints = list(dict.fromkeys(hint for _, hint in sorted(self._hints(), key=lambda found: found[0])))

    def _package(self, item: Registered, transfers: dict[tuple[str, str], reports.Transfer]) -> Package:
        copies = tuple(
            self._copy(location, transfers[location.site, location.name])
            for location in self.locations
            if (location.site, location.name) in transfers
        )
        if item.error is not None or any(copy.outcome is Outcome.FAILED for copy in copies):
            outcome = Outcome.FAILED
        elif len(copies) == len(self.locations) and all(copy.outcome in _GOOD for copy in copies):
            outcome = Outcome.ARCHIVED
        else:
            outcome = Outcome.WAITING
        error = str(item.error) if item.error is not None else None
        return Package(item.name, item.id, item.size, item.checksum, outcome, error, copies)

    def _copy(self, location: Location, transfer: reports.Transfer) -> Copy:
        outcome, error = self._outcome(location, transfer)
        return Copy(
            location=str(location),
            outcome=outcome,
            status=transfer.status,
            reason=transfer.reason,
            error=error,
            path=str(Path(location.options["path"], names.object_key(transfer.package))),
            evidence=transfer.evidence,
            attempt=transfer.attempt,
            operation_id=transfer.id,
        )

    def _outcome(self, location: Location, transfer: reports.Transfer) -> tuple[Outcome, str | None]:
        match transfer.status:
            case Status.COMPLETED if transfer.id not in self.already:
                return (Outcome.ADOPTED if transfer.id in self.adopted else Outcome.ARCHIVED), None
            case Status.COMPLETED:
                return self._looked_at(location, transfer)
            case Status.FAILED:
                return Outcome.FAILED, transfer.error
            case Status.IN_PROGRESS:
                return Outcome.WAITING, _ELSEWHERE
            case _:
                return Outcome.WAITING, transfer.error or self._why_not_begun(location)

    def _looked_at(self, location: Location, transfer: reports.Transfer) -> tuple[Outcome, str | None]:
        """Whether what is recorded as archived lies there, at a glance: its bytes are not read again."""
        try:
            found = storage.open_storage(location).stat(names.object_key(transfer.package))
        except CCATDataOperationError as error:
            return Outcome.FAILED, str(error)
        if found is not None and found.size == transfer.bytes:
            return Outcome.ALREADY_ARCHIVED, None
        self.lost.add(transfer.id)
        if found is None:
            return Outcome.FAILED, "it was archived, and is not there any more"
        return Outcome.FAILED, f"it was archived with {_exact(transfer.bytes)}, and has {_exact(found.size)} now"

    def _why_not_begun(self, location: Location) -> str:
        paused = self.pauses.get(str(location))
        if paused is not None:
            return f"the destination is paused: {paused.pause_message or paused.pause_reason}"
        return "interrupted before it was begun" if self.was_interrupted else "no worker has begun it"

    @property
    def counts(self) -> Counter[Outcome]:
        """Packages by outcome: archived at every destination, failed at one, or waiting."""
        return Counter(package.outcome for package in self.packages)

    @property
    def exit_code(self) -> int:
        """0 only when every package is verified at every destination."""
        if self.counts[Outcome.ARCHIVED] == len(self.packages):
            return 0
        codes = {error.exit_code for error in self.registration.errors}
        # When nothing of the input could be used at all, it is the input that is at fault.
        is_all_input = len(self.registration.errors) == len(self.packages)
        return codes.pop() if is_all_input and len(codes) == 1 else NOT_ALL

    def show(self, *, seconds: float, as_json: bool) -> None:
        """Print it; what is to be done next goes to standard error."""
        if as_json:
            output.write_json(
                {
                    "packages": self.packages,
                    "archived": self.counts[Outcome.ARCHIVED],
                    "failed": self.counts[Outcome.FAILED],
                    "waiting": self.counts[Outcome.WAITING],
                    "database": preparation.shown(),
                    "seconds": round(seconds, 3),
                    "notes": list(self.registration.notes),
                }
            )
        else:
            output.lines([*self._lines(), self._summary(seconds)])
        for note in self.registration.notes:
            output.complain("note", note)
        if self.exit_code:
            self._complain()

    def _lines(self) -> list[str]:
        found = []
        for package in self.packages:
            name = names.shown(package.name)
            if package.error is not None:
                found.append(f"{name}  failed: {package.error}")
            found += [
                "  ".join(part for part in (name, copy.words, package.checksum, copy.path) if part)
                for copy in package.destinations
            ]
        return found

    def _summary(self, seconds: float) -> str:
        done = [package for package in self.packages if package.outcome is Outcome.ARCHIVED]
        outcomes = Counter(copy.outcome for package in self.packages for copy in package.destinations)
        now, earlier = outcomes[Outcome.ARCHIVED] + outcomes[Outcome.ADOPTED], outcomes[Outcome.ALREADY_ARCHIVED]
        copies = [f"{now} archived now and verified"] if now or not earlier else []
        copies += [f"{earlier} verified earlier and not read again"] if earlier else []
        return (
            f"{len(done)} of {output.count(len(self.packages), 'package')} ({output.size(sum(p.size for p in done))}) "
            f"archived at {output.count(len(self.locations), 'destination')}; copies: {', '.join(copies)}; "
            f"{seconds:.1f} s; database '{preparation.shown()}'"
        )

    def _complain(self) -> None:
        failed, waiting = self.counts[Outcome.FAILED], self.counts[Outcome.WAITING]
        parts = [f"{failed} failed" if failed else "", f"{waiting} waiting" if waiting else ""]
        output.complain("error", f"not everything is archived: {', '.join(part for part in parts if part)}")
        for hint in self.hints:
            if not (self.was_interrupted and hint == GO_ON):  # the line that follows says so
                output.complain("hint", hint)

    def _hints(self) -> Iterator[tuple[int, str]]:
        """What to do next, for each cause that there is, with its rank."""
        errors: tuple[CCATDataOperationError, ...] = self.registration.errors
        if errors and errors[0].remedy:
            yield _REFUSED, errors[0].remedy
        told: set[int] = set()  # of what may concern thousands, the first is told
        for package in self.packages:
            for copy in package.destinations:
                rank, make = self._cause(copy)
                if make is not None and (rank == _WAITS or rank not in told):
                    told.add(rank)
                    yield rank, make(copy, package)

    def _cause(self, copy: Copy) -> tuple[int, Callable[[Copy, Package], str] | None]:
        if copy.outcome in _GOOD:
            return _WAITS, None
        if copy.operation_id in self.lost:
            return _LOST, _hint_for_lost
        is_unwell = copy.location in self.pauses or copy.reason is FailureReason.DESTINATION_UNAVAILABLE
        if copy.status is Status.COMPLETED or (copy.outcome is Outcome.WAITING and is_unwell):
            return _WAITS, _hint_for_unwell
        return (_FAILED, _hint_for_failed) if copy.outcome is Outcome.FAILED else (_WAITS, _hint_for_waiting)


def _hint_for_lost(copy: Copy, package: Package) -> str:
    other = _other_copy(package, besides=copy.location)
    if other is None:
        return f"{LOST}; the database knows no other copy that is there"
    return f"{LOST}; then restore it by hand, for instance from '{names.shown(other)}'"


def _other_copy(package: Package, besides: str) -> str | None:
    """The path of a copy that is there and has the right size, at another place of this machine."""
    with database.session_scope(read_only=True) as session:
        copies = reports.present_copies(session, package.name)
    for location, path in copies:
        if str(location) == besides or location.storage_type is not StorageType.DISK:
            continue
        with contextlib.suppress(CCATDataOperationError):
            found = storage.open_storage(location).stat(path)
            if found is not None and found.size == package.size:
                return str(Path(location.options["path"], path))
    return None


def _hint_for_failed(copy: Copy, _package: Package) -> str:
    return (
        f"`ccat_data_transfer transfer show {copy.operation_id}` tells the whole history; "
        f"remove the cause, then {_AGAIN}"
    )


def _hint_for_unwell(copy: Copy, _package: Package) -> str:
    return f"make destination '{copy.location}' usable (mounted, writable, with room), then {_AGAIN}"


def _hint_for_waiting(copy: Copy, _package: Package) -> str:
    if copy.reason is FailureReason.SOURCE_UNAVAILABLE:
        return f"bring back the place that the package is read from, then {_AGAIN}"
    return f"wait until the other process has ended, then {_AGAIN}" if copy.error == _ELSEWHERE else GO_ON


def _exact(count: int) -> str:
    return f"{output.size(count)} ({count} bytes)"
