"""The detailed log of a restore, or of its rehearsal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from holdfast.clock import timestamp
from holdfast.durable import explained
from holdfast.errors import HoldfastError
from holdfast.events import Emit, Event, Noted, RunFailed, RunFinished, RunStarted, StageStarted, Warned
from holdfast.installation import Installation


class RestoreLog:
    """The detailed log of one restore, and what its report tells."""

    def __init__(self, installation: Installation, reference: str, emit: Emit, verb: str = "restore") -> None:
        installation.state.make()
        now = installation.clock()
        directory = installation.state.restore_logs
        self.path = directory / f"{verb}_{now:%Y%m%d_%H%M%S}_{os.getpid()}.log"
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        """What the record in the history says besides."""
        self._clock = installation.clock
        self._emit = emit
        with explained(f"cannot write {self.path}"):
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "w", errors="backslashreplace")
        what = "into" if verb == "restore" else "for"
        self.write(f"{verb} of {reference} {what} {installation.settings.root}")

    def emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)
            self.write(f"warning: {event.message}")
        elif isinstance(event, Noted):
            self.notes.append(event.message)
            self.write(event.message)
        elif isinstance(event, StageStarted):
            self.write(f"{event.stage}: {event.subject}")
        elif isinstance(event, (RunStarted, RunFinished, RunFailed)):
            self.write(f"{type(event).__name__}: {event.subject}")
        self._emit(event)

    def write(self, line: str) -> None:
        with explained(f"cannot write {self.path}"):
            self._file.write(f"{timestamp(self._clock())} {line}\n")
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # What could not be written has been told.
            self._file.close()


@contextmanager
def restore_log(
    installation: Installation, reference: str, emit: Emit, verb: str = "restore"
) -> Iterator[RestoreLog]:
    """Writes the log, and the outcome to the history."""
    started = time.monotonic()
    log = RestoreLog(installation, reference, emit, verb)
    record = {
        "time": timestamp(installation.clock()),
        "verb": verb,
        "backup_id": reference,
        "log": str(log.path),
    }
    try:
        yield log
    except BaseException as error:
        message = str(error) if isinstance(error, HoldfastError) else type(error).__name__
        log.write(f"failed: {message}")
        record |= {"status": "failed", "error": type(error).__name__, "message": message}
        emit(RunFailed(verb, reference, message))
        raise
    else:
        record["status"] = "success"
    finally:
        log.close()
        seconds = round(time.monotonic() - started, 3)
        installation.state.record(record | log.facts | {"duration_seconds": seconds})
