"""What every delivery has in common: it fails in one way, and takes no longer than it may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TIMEOUT = 15.0
"""Seconds that one answer from the network may take."""
PATIENCE = 60.0
"""Seconds that a delivery may take as a whole. A server that sends a byte now and then stays below `TIMEOUT`."""
_GLANCE = 0.1


class Undelivered(Exception):
    """A notification could not be delivered. It never leaves this package."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def patiently(work: Callable[[], None], check: Callable[[], None], patience: float = PATIENCE) -> None:
    """Does `work` in a thread of its own, and calls `check` meanwhile, several times a second: it raises Interrupted
    when we are asked to stop, and `work` is then left to its own timeouts. What `work` raises is raised here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
            failures.append(error)

    thread = threading.Thread(target=run, name="holdfast-notify", daemon=True)
    thread.start()
    deadline = time.monotonic() + patience
    while thread.is_alive():
        check()
        if time.monotonic() > deadline:
            raise Undelivered(f"it took longer than {patience:.0f} seconds")
        thread.join(_GLANCE)
    if failures:
        raise failures[0]
