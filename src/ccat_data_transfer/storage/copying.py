"""Moving bytes through stages that overlap: read, hash, write.

Plain reads and writes only: `copy_file_range`, `sendfile` and reflinks may let the copy share the blocks of
the source, and then reading the copy back proves nothing about a second copy.
"""

import mmap
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

# 1 MiB x 8: larger buffers fall out of the second-level cache between the stages and were slower, always.
CHUNK_BYTES = 1 << 20
BUFFERS = 8

Fill = Callable[[memoryview], int]
Sink = Callable[[memoryview], None]


class _Supply:
    """The source, read in full chunks, and less than a page past its size, which shows whether it grew.

    Ends on a page boundary, because reads past the page cache must.
    """

    def __init__(self, fill: Fill, size: int) -> None:
        self._fill = fill
        self._left = (size // mmap.PAGESIZE + 1) * mmap.PAGESIZE
        self.total = 0

    @property
    def left(self) -> int:
        """How many bytes will be read at most."""
        return self._left

    def __call__(self, buffer: memoryview) -> int:
        """Bytes put into `buffer`: fewer than fit only at the end."""
        room = buffer[: min(len(buffer), self._left)]
        done = 0
        while done < len(room):
            got = self._fill(room[done:])
            if got == 0:
                break
            done += got
        self._left -= done
        self.total += done
        return done


def pump(fill: Fill, sinks: Sequence[Sink], size: int) -> int:
    """Give all that `fill` yields to each of `sinks` in turn; returns how many bytes there were.

    Reads no more than the rest of a page past `size` bytes. The last sink runs in the calling thread; the
    others and `fill` have threads of their own when there is enough to do. An error of any of them ends them
    all and is raised here; no thread is left behind, whatever happens.
    """
    supply = _Supply(fill, size)
    if size > CHUNK_BYTES:
        _Line(supply, sinks).run()
    else:
        buffer = memoryview(mmap.mmap(-1, supply.left))
        while got := supply(buffer):
            for sink in sinks:
                sink(buffer[:got])
    return supply.total


_Item = tuple[memoryview, int]


class _Line:
    """Stages in a row; a fixed set of buffers goes round: filled, handed on, filled again."""

    def __init__(self, supply: _Supply, sinks: Sequence[Sink]) -> None:
        self._supply = supply
        self._sinks = sinks
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._queues: list[SimpleQueue[_Item | None]] = [SimpleQueue() for _ in sinks]
        self._failures: list[BaseException] = []
        self._is_over = False
        for _ in range(BUFFERS):
            self._free.put(memoryview(mmap.mmap(-1, CHUNK_BYTES)))

    def run(self) -> None:
        threads = [threading.Thread(target=self._guard, args=(self._read,), name="copy-read", daemon=True)]
        threads += [
            threading.Thread(target=self._guard, args=(self._work, stage), name=f"copy-{stage}", daemon=True)
            for stage in range(len(self._sinks) - 1)
        ]
        started: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            self._work(len(self._sinks) - 1)
        finally:
            self._stop()
            for thread in started:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def _guard(self, work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread and raised there
            self._failures.append(error)
            self._stop()

    def _stop(self) -> None:
        # Everybody waits for one of the queues only, so this wakes all.
        self._is_over = True
        self._free.put(None)
        for queue in self._queues:
            queue.put(None)

    def _read(self) -> None:
        while (buffer := self._free.get()) is not None and not self._is_over:
            got = self._supply(buffer)
            if got == 0:
                break
            self._queues[0].put((buffer, got))
        self._queues[0].put(None)

    def _work(self, stage: int) -> None:
        is_last = stage == len(self._sinks) - 1
        while (item := self._queues[stage].get()) is not None and not self._is_over:
            buffer, got = item
            self._sinks[stage](buffer[:got])
            if is_last:
                self._free.put(buffer)
            else:
                self._queues[stage + 1].put(item)
        if not is_last:
            self._queues[stage + 1].put(None)
