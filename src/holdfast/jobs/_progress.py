"""Progress, told a few times a second however often it is made."""

from __future__ import annotations

import time

from holdfast.events import Emit, Progressed

_INTERVAL = 0.1
_BYTES = 8 << 20


class Progress:
    """Gathers progress and sends it as events."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._bytes = 0
        self._entries = 0
        self._last = time.monotonic()

    def __call__(self, bytes_done: int, entries_done: int = 0) -> None:
        self._bytes += bytes_done
        self._entries += entries_done
        if self._bytes >= _BYTES or self._entries >= 1000:
            now = time.monotonic()
            if now - self._last >= _INTERVAL:
                self._last = now
                self.flush()

    def flush(self) -> None:
        if self._bytes or self._entries:
            self._emit(Progressed(self._bytes, self._entries))
            self._bytes = self._entries = 0
