"""What `archive` reports: one line for each package and destination, and whether all that was asked is true."""

import enum
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccat_data_transfer import names, reports, storage
from ccat_data_transfer.cli import output, preparation
from ccat_data_transfer.exceptions import CCATDataOperationError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.packages import Registered, Registration
from ccat_data_transfer.states import Status

NOT_ALL = 1
GO_ON = "run the same command again to go on"


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
    packages: list[Package] = field(init=False)

    def __post_init__(self) -> None:
        by_package: dict[str, dict[tuple[str, str], reports.Transfer]] = {}
        for transfer in self.transfers:
            by_package.setdefault(transfer.package, {})[transfer.site, transfer.location] = transfer
        self.packages = [self._package(item, by_package.get(item.name, {})) for item in self.registration.packages]

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
                problem = _gone(location, transfer)
                return (Outcome.FAILED if problem else Outcome.ALREADY_ARCHIVED), problem
            case Status.FAILED:
                return Outcome.FAILED, transfer.error
            case Status.IN_PROGRESS:
                return Outcome.WAITING, "another process is carrying it"
            case _:
                return Outcome.WAITING, transfer.error

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
        places = len(self.locations)
        return (
            f"{len(done)} of {len(self.packages)} packages ({output.size(sum(p.size for p in done))}) are verified at "
            f"{places} {'destination' if places == 1 else 'destinations'}; {seconds:.1f} s; "
            f"database '{preparation.shown()}'"
        )

    def _complain(self) -> None:
        failed, waiting = self.counts[Outcome.FAILED], self.counts[Outcome.WAITING]
        parts = [f"{failed} failed" if failed else "", f"{waiting} waiting" if waiting else ""]
        output.complain("error", f"not everything is archived: {', '.join(part for part in parts if part)}")
        output.complain("hint", self._hint())

    def _hint(self) -> str:
        errors: tuple[CCATDataOperationError, ...] = self.registration.errors
        if errors and errors[0].remedy:
            return errors[0].remedy
        for package in self.packages:
            for copy in package.destinations:
                if copy.outcome is Outcome.FAILED:
                    return (
                        f"`ccat_data_transfer transfer show {copy.operation_id}` tells the whole history; "
                        "remove the cause, then run the same command again"
                    )
        return GO_ON


def _gone(location: Location, transfer: reports.Transfer) -> str | None:
    """Why what is recorded as archived is not what lies there, at a glance: its bytes are not read again."""
    try:
        found = storage.open_storage(location).stat(names.object_key(transfer.package))
    except CCATDataOperationError as error:
        return str(error)
    if found is None:
        return "it was archived, and is not there any more"
    if found.size != transfer.bytes:
        return f"it was archived with {transfer.bytes} bytes, and has {found.size} now"
    return None
