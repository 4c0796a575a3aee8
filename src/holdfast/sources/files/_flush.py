"""Makes large files durable while the next ones are written: the disk and the processor work at once."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

_PENDING = 2
"""So many wait for the disk at most. Then whoever writes does: it is no faster than the disk in the end."""


class Flusher:
    """For one calling thread."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being flushed."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        return not self._pending

    def flush(self, descriptor: int) -> None:
        """Begins to make durable what a file holds by now; it may be written on, and closed.

        Raises OSError, also of a file that was given before: the system tells a failed write only once.
        """
        while len(self._pending) >= _PENDING:
            self._pending.popleft().result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._pending.append(self._pool.submit(_flush, os.dup(descriptor)))

    def settle(self) -> None:
        """Waits until all is durable. Raises OSError."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Waits for what is at work. Raises nothing: after an error it does not matter any more."""
        if self._pool is not None:
            self._pool.shutdown()


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
