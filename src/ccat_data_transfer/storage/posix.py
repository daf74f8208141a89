"""A data location that is a directory: local disks, and what is mounted like one.

Knows the order in which a package becomes an object, and refuses everything that would weaken it: following
links, overwriting, publishing what was not read back from the medium.
"""

import os
import platform
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from ccat_data_transfer.checksums import DEFAULT_ALGORITHM, Checksum, Digests
from ccat_data_transfer.exceptions import (
    BadSourceError,
    CCATDataOperationError,
    ConfigurationError,
    DataCorruptionError,
    DestinationFileExistsError,
    LocationUnavailableError,
    SourceChangedError,
    StorageError,
)
from ccat_data_transfer.locations import Location
from ccat_data_transfer.names import shown
from ccat_data_transfer.states import Evidence, PauseReason
from ccat_data_transfer.storage import adopting, copying, errnos, incoming, medium, paths, volume
from ccat_data_transfer.storage.base import (
    Health,
    Leaving,
    ObjectStat,
    Progress,
    Reader,
    Receipt,
    Storage,
    no_progress,
)
from ccat_data_transfer.storage.reading import PosixReader, identity, source_at_fault

_ENROLMENT = "enrol"  # names the attempt


class PosixStorage(Storage):
    """Objects as read-only files below `options["path"]`."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        path = location.options.get("path", "")
        if not path.startswith("/") or "\0" in path:
            raise ConfigurationError(f"data location '{location}' needs an absolute 'path', not '{shown(path)}'")
        here = platform.node()
        if not location.is_on_this_host(here):
            host = location.options["host"]
            raise ConfigurationError(
                f"data location '{location}' is a directory of host '{shown(host)}', not of '{shown(here)}'",
                remedy="run a worker on that host, or mount the directory here and declare it without 'host'",
            )

    def _root(self, *, search_only: bool = False) -> volume.Root:
        # Opened anew by every call: between two calls the disk may have been unmounted or exchanged.
        root = volume.Root(self.location, search_only=search_only)
        try:
            root.check_mark()
        except BaseException:
            root.close()
            raise
        return root

    def enrol(self) -> str:
        """Mark the root with a sentinel file unless it has one, and return the mark."""
        with volume.Root(self.location) as root:
            mark = root.mark()
            if mark is None:
                self._store_documents(root, [], {volume.SENTINEL: volume.new_mark()}, _ENROLMENT)
                mark = root.mark()
            else:
                # Whoever wrote it may have died before this.
                with errnos.blaming(self.location, "making the mark durable"):
                    paths.fsync_directory(root.fd)
        if mark is None:
            raise StorageError(f"the mark of location '{self.location}' vanished while it was enrolled")
        return mark

    def check(self, *, writable: bool = True) -> Health:
        """Say whether the place can be used now; leaves nothing behind."""
        free = total = evidence = None
        try:
            with self._root() as root:
                free, total = root.room()
                if writable:
                    root.check_room(0)
                    evidence = self._probe(root)
        except LocationUnavailableError as error:
            return Health(PauseReason(error.condition), str(error), free, total)
        except CCATDataOperationError as error:
            return Health(PauseReason.UNREACHABLE, str(error), free, total)
        required = self.location.required_evidence
        if evidence is not None and not evidence.suffices(required):
            message = f"location '{self.location}' can verify to '{evidence}' only, policy asks for '{required}'"
            return Health(PauseReason.EVIDENCE, message, free, total, evidence)
        return Health(None, f"data location '{self.location}' is well", free, total, evidence)

    def _probe(self, root: volume.Root) -> Evidence:
        with errnos.blaming(self.location, "writing"):
            fd = incoming.try_file(root)
            try:
                os.write(fd, b"\0")
                os.fsync(fd)
                return medium.evict(fd, 1, self.location.required_evidence)
            finally:
                os.close(fd)

    def open(self, key: str) -> PosixReader:
        """Open an object; what lies on a disk that is not mounted does not look as if it were missing."""
        paths.source_parts(key)
        return PosixReader(self._root(search_only=True), key)

    def stat(self, key: str) -> ObjectStat | None:
        """What lies under `key`, or None; `BadSourceError` for what is not a regular file."""
        parts = paths.source_parts(key)
        with self._root(search_only=True) as root:
            try:
                with errnos.blaming(self.location, f"looking for '{shown(key)}'"):
                    found = _lstat_below(root.fd, parts)
            except paths.ObstacleError as obstacle:
                raise BadSourceError(f"{obstacle} at location '{self.location}'") from obstacle
        if found is None:
            return None
        modified = datetime.fromtimestamp(found.st_mtime, UTC)
        return ObjectStat(key, found.st_size, modified, identity(found))

    def put(
        self, source: Reader, key: str, expected: Checksum, *, token: str, on_progress: Progress = no_progress
    ) -> Receipt:
        """Copy, make durable, verify from the medium, publish create-only.

        `on_progress` hears of each byte twice: when it was written, and when it was read back.
        """
        paths.stored_parts(key)
        incoming.check_token(token)
        with self._root() as root:
            receipt = self._adopt(root, source, key, expected, on_progress)
            if receipt is None:
                root.check_room(source.size)
                receipt = self._store(root, source, key, expected, token, on_progress)
            # None: somebody else published first.
            receipt = receipt or self._adopt(root, source, key, expected, on_progress)
        if receipt is None:
            raise StorageError(f"'{shown(key)}' at location '{self.location}' was taken and then vanished")
        return receipt

    def _store(
        self,
        root: volume.Root,
        source: Reader,
        key: str,
        expected: Checksum,
        token: str,
        on_progress: Progress,
    ) -> Receipt | None:
        """The receipt, or None when the key was taken meanwhile."""
        *above, name = paths.stored_parts(key)
        with incoming.Temporary(root, token, source.size) as temporary:
            digests = _copy(source, key, temporary, expected, on_progress)
            # The folder is made before the bytes are synced: one commit of the journal then takes both.
            with self._make_folders(root, above) as folders:
                temporary.seal()
                evidence = self._verify_temporary(temporary, key, source.size, digests, on_progress)
                with errnos.blaming(self.location, "making the folder durable"):
                    folders.sync_parents()
                root.check_unmoved()
                if not temporary.publish(folders.holder_fd, name):
                    return None
                with errnos.blaming(self.location, "making the name durable"):
                    folders.sync_holder()
        return Receipt(key, source.size, digests, evidence)

    def _make_folders(self, root: volume.Root, above: list[str]) -> paths.Folders:
        try:
            with errnos.blaming(self.location, "making the folder"):
                return paths.Folders(root.fd, above, make=True)
        except paths.ObstacleError as obstacle:
            message = f"{obstacle} at location '{self.location}', not a folder"
            raise DestinationFileExistsError(message) from obstacle

    def _verify_temporary(
        self,
        temporary: incoming.Temporary,
        key: str,
        size: int,
        digests: dict[str, Checksum],
        on_progress: Progress,
    ) -> Evidence:
        fd = temporary.reopen()
        try:
            found = medium.read_back(fd, self.location, (DEFAULT_ALGORITHM,), on_progress)
        finally:
            os.close(fd)
        wrote, stored = digests[DEFAULT_ALGORITHM], found.checksums[DEFAULT_ALGORITHM]
        if (found.size, stored) != (size, wrote):
            raise StorageError(
                f"location '{self.location}' did not keep '{shown(key)}': "
                f"wrote {size} bytes {wrote}, read back {found.size} bytes {stored}"
            )
        self._check_evidence(found.evidence)
        return found.evidence

    def _check_evidence(self, evidence: Evidence) -> None:
        required = self.location.required_evidence
        if not evidence.suffices(required):
            message = f"can be read back to '{evidence}' only, and its policy asks for '{required}'"
            raise errnos.unavailable(self.location, PauseReason.EVIDENCE, message)

    def _existing(self, root: volume.Root, key: str, *, listing: bool = False) -> paths.File | None:
        """The object under `key`; raises `ObstacleError` when something else is there."""
        with errnos.blaming(self.location, f"opening '{shown(key)}'"):
            try:
                return paths.File(root.fd, paths.source_parts(key), listing=listing)
            except FileNotFoundError:
                return None

    def _adopt(
        self, root: volume.Root, source: Reader, key: str, expected: Checksum, on_progress: Progress
    ) -> Receipt | None:
        """The receipt for an object that is there already; None when there is none, an error for another."""
        try:
            file = self._existing(root, key, listing=True)
        except paths.ObstacleError as obstacle:
            raise DestinationFileExistsError(
                f"{obstacle} at location '{self.location}', where {expected} was to be stored"
            ) from obstacle
        if file is None:
            return None
        with file:
            self._refuse_same_file(source, file.fd, key)
            adopting.protect(root, file.fd, key)
            with errnos.blaming(self.location, f"making '{shown(key)}' durable"):
                # Whoever published it may have died before this.
                os.fsync(file.fd)
                file.folders.sync_parents()
                file.folders.sync_holder()
            algorithms = (DEFAULT_ALGORITHM, expected.algorithm)
            found = medium.read_back(file.fd, self.location, algorithms, on_progress)
        stored = found.checksums[expected.algorithm]
        if (found.size, stored) != (source.size, expected):
            raise DestinationFileExistsError(
                f"'{shown(key)}' at location '{self.location}' holds other bytes: "
                f"expected {source.size} bytes {expected}, stored {found.size} bytes {stored}"
            )
        self._check_evidence(found.evidence)
        return Receipt(key, found.size, found.checksums, found.evidence, adopted=True)

    def _refuse_same_file(self, source: Reader, fd: int, key: str) -> None:
        found = os.fstat(fd)
        if isinstance(source, PosixReader) and source.file_id == (found.st_dev, found.st_ino):
            raise BadSourceError(
                f"'{shown(key)}' at location '{self.location}' and its source are one file, not two copies",
                remedy="give the buffer and the archive directories of their own",
            )

    def put_documents(self, documents: Mapping[str, bytes], *, token: str) -> frozenset[str]:
        """Store small documents of one folder, durable and create-only; the keys that were taken."""
        split = {key: paths.stored_parts(key) for key in documents}
        above = {tuple(parts[:-1]) for parts in split.values()}
        if len(above) != 1:
            raise ValueError("documents of several folders cannot be stored together")
        incoming.check_token(token)
        by_name = {parts[-1]: documents[key] for key, parts in split.items()}
        with self._root() as root:
            taken = self._store_documents(root, list(*above), by_name, token)
        return frozenset(key for key, parts in split.items() if parts[-1] in taken)

    def _store_documents(
        self, root: volume.Root, above: list[str], documents: Mapping[str, bytes], token: str
    ) -> set[str]:
        """Store documents by their names in the folder `above`; the names that were taken."""
        # Not read back from the medium: they are small, derived, and can be made again from the database. For that
        # reason, too, folders that were there are taken to be durable: storing the package saw to that.
        with self._make_folders(root, above) as folders:
            taken = {
                name for name, data in documents.items() if not self._publish_document(root, folders, name, data, token)
            }
            with errnos.blaming(self.location, "making the names durable"):
                if folders.are_new:
                    folders.sync_parents()
                folders.sync_holder()
        return taken

    def _publish_document(self, root: volume.Root, folders: paths.Folders, name: str, data: bytes, token: str) -> bool:
        """Whether the name was free."""
        with errnos.blaming(self.location, f"looking for '{shown(name)}'"):
            if _exists(folders.holder_fd, name):
                return False
        with incoming.Temporary(root, token, len(data)) as temporary:
            temporary.write(memoryview(data))
            temporary.seal()
            return temporary.publish(folders.holder_fd, name)

    def read_document(self, key: str, *, limit: int = 64 << 20) -> bytes | None:
        """The bytes of a small document, or None when there is none; `StorageError` past `limit` bytes."""
        with self._root(search_only=True) as root:
            file = self._existing_or_fault(root, key)
            if file is None:
                return None
            with (
                file,
                errnos.blaming(self.location, f"reading '{shown(key)}'"),
                os.fdopen(os.dup(file.fd), "rb") as stream,
            ):
                data = stream.read(limit + 1)
        if len(data) > limit:
            raise StorageError(f"'{shown(key)}' at location '{self.location}' is larger than {limit} bytes")
        return data

    def _existing_or_fault(self, root: volume.Root, key: str) -> paths.File | None:
        try:
            return self._existing(root, key)
        except paths.ObstacleError as obstacle:
            raise StorageError(f"{obstacle} at location '{self.location}', not a stored object") from obstacle

    def verify(self, key: str, expected: Checksum, *, on_progress: Progress = no_progress) -> Receipt:
        """Read an object from the medium and compare; `StorageError` when it is missing or differs."""
        with self._root(search_only=True) as root:
            file = self._existing_or_fault(root, key)
            if file is None:
                raise StorageError(f"'{shown(key)}' is missing at location '{self.location}'")
            with file:
                algorithms = (DEFAULT_ALGORITHM, expected.algorithm)
                found = medium.read_back(file.fd, self.location, algorithms, on_progress)
        stored = found.checksums[expected.algorithm]
        if stored != expected:
            raise StorageError(
                f"checksum mismatch for '{shown(key)}' at location '{self.location}': "
                f"expected {expected}, stored {stored}"
            )
        return Receipt(key, found.size, found.checksums, found.evidence)

    def sweep(self, is_dead: Callable[[str], bool], *, delete: bool = False) -> list[Leaving]:
        """What dead attempts left behind; removed only with `delete`."""
        with self._root() as root:
            return incoming.sweep(root, is_dead, delete=delete)

    def is_permanent(self, error: BaseException) -> bool:
        """Whether a retry cannot cure an error of this backend or of the operating system."""
        if isinstance(error, OSError):
            error = errnos.destination_error(error, self.location, "the work")
        return isinstance(error, CCATDataOperationError) and not error.retryable


def _copy(
    source: Reader, key: str, temporary: incoming.Temporary, expected: Checksum, on_progress: Progress
) -> dict[str, Checksum]:
    """Copy the source in one pass; the checksums of what it yielded, which are as `expected`."""
    digests = Digests((DEFAULT_ALGORITHM, expected.algorithm))

    def read(buffer: memoryview) -> int:
        with source_at_fault(key):
            return source.readinto(buffer)

    def write(chunk: memoryview) -> None:
        temporary.write(chunk)
        on_progress(len(chunk))

    total = copying.pump(read, [digests.update, write], source.size)
    # First this: bytes that differ because somebody writes to the source are no proof of a corrupt source.
    with source_at_fault(key):
        source.check_unchanged()
    if total != source.size:
        raise SourceChangedError(f"source of '{shown(key)}' had {source.size} bytes when it was opened, now {total}")
    result = digests.result()
    found = result[expected.algorithm]
    if found != expected:
        raise DataCorruptionError(
            f"source of '{shown(key)}' is not what was registered: expected {expected}, found {found}"
        )
    return result


def _lstat_below(root_fd: int, parts: list[str]) -> os.stat_result | None:
    try:
        with paths.Folders(root_fd, parts[:-1]) as folders:
            found = paths.lstat(folders.holder_fd, parts[-1])
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise paths.ObstacleError("/".join(parts), found.st_mode)
    return found


def _exists(directory_fd: int, name: str) -> bool:
    try:
        paths.lstat(directory_fd, name)
    except FileNotFoundError:
        return False
    return True
