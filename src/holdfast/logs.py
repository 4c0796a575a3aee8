"""The log of a program that runs for months: a file that is rotated, and the terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO, TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

from holdfast.durable import explained
from holdfast.errors import ConfigError
from holdfast.text import harmless

SCHEDULER_LOG = "backup_scheduler.log"
"""Below ``logs/`` in the service root."""

_BYTES = 10_000_000
_OLD_FILES = 5

LogFormat = Literal["text", "json"]


class Lines(logging.Formatter):
    """``2024-01-01T02:00:00 INFO backup full_20240101_020000: started``, in UTC; or the same as an object of JSON."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = harmless(record.getMessage())
        if self._json:
            return json.dumps({"time": moment, "level": record.levelname, "message": message})
        return f"{moment} {record.levelname} {message}"


class PrivateRotatingFile(RotatingFileHandler):
    """10 MB, and five older files of that; 0600. Follows its name, where a restore, or another program that rotates
    logs, has put another file there, or none."""

    def __init__(self, path: Path, log_format: LogFormat = "text", *, max_bytes: int = _BYTES) -> None:
        """Raises StorageError where it cannot be written, ConfigError where it is a link."""
        if path.is_symlink():
            raise ConfigError(f"{path} is a link, which is not followed", hint="Remove it, or rename it.")
        with explained(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, maxBytes=max_bytes, backupCount=_OLD_FILES, encoding="utf-8")
        self.setFormatter(Lines(log_format))
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._follow()
        except OSError:
            self.handleError(record)
            return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """A log that cannot be written fails no backup. The terminal has the line as well."""
        if not self._told:
            self._told = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    def _follow(self) -> None:
        if self.stream is None:
            return
        ours = os.fstat(self.stream.fileno())
        try:
            theirs = os.lstat(self.baseFilename)
        except FileNotFoundError:
            theirs = None
        if theirs is None or (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            self.stream.close()
            os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
            self.stream = self._open()

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return TextIOWrapper(FileIO(os.open(self.baseFilename, flags, 0o600), "a"), self.encoding)


@contextmanager
def scheduler_log(root: Path, level: str, log_format: LogFormat) -> Iterator[Path]:
    """Sends the logger ``holdfast`` to ``logs/backup_scheduler.log`` in the service root, and to standard error.

    Returns the path of the file. Raises StorageError where it cannot be written.
    """
    path = root / "logs" / SCHEDULER_LOG
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Lines(log_format))
    file = PrivateRotatingFile(path, log_format)
    logger = logging.getLogger("holdfast")
    before, level_before = logger.handlers[:], logger.level
    logger.handlers[:] = [file, terminal]
    logger.setLevel(level)
    try:
        yield path
    finally:
        logger.handlers[:] = before
        logger.setLevel(level_before)
        file.close()
