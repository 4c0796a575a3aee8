"""Ctrl-C and SIGTERM, taken where they do no harm.

Python raises KeyboardInterrupt between any two instructions, also while a thread pool holds its own lock, which is
then never let go. So while a job runs the signal is only noted, and raised at the job's next event; a second one is
raised at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from holdfast.errors import Interrupted


class Interruption:
    """The state of one process."""

    def __init__(self) -> None:
        self._deferred = False
        self._noted = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. Raises Interrupted, unless it may wait."""
        if self._deferred and not self._noted:
            self._noted = True
            return
        raise Interrupted("interrupted")

    def check(self) -> None:
        """Raises Interrupted if a signal has come, once."""
        if self._noted:
            self._noted = False
            raise Interrupted("interrupted")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals wait for `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Signals do not wait: a person is asked something."""
        before, self._deferred = self._deferred, False
        try:
            yield
        finally:
            self._deferred = before


interruption = Interruption()
