"""SHA-256 of content, computed beside the thread that the content passes through.

It is slower than all else that a thread does with a chunk of a model, and needs nothing from the others.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future

_INLINE = 128 << 10
"""Bytes up to which handing data over takes as long as hashing it."""
_PENDING = 16


class Digest:
    """For one calling thread. Data must stay as it is until `hexdigest`."""

    def __init__(self, pool: Executor) -> None:
        """`pool`: of one thread, which may serve several of these one after the other."""
        self._hash = hashlib.sha256()
        self._pool = pool
        self._pending: deque[Future[None]] = deque()
        self.size = 0
        """Bytes that were given."""

    def update(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Takes the next pieces of the content. At most `_PENDING` of such calls wait."""
        size = sum(map(len, pieces))
        self.size += size
        if not self._pending and size <= _INLINE:
            self._take(pieces)
            return
        if len(self._pending) >= _PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._take, pieces))

    def hexdigest(self) -> str:
        while self._pending:
            self._pending.popleft().result()
        return self._hash.hexdigest()

    def _take(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._hash.update(piece)
