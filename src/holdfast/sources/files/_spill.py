"""Sorted names of directories that are too large to be sorted in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from holdfast.durable import explained, private_file
from holdfast.errors import SourceError

READ_BYTES = 16 * 1024
"""Read ahead of each run that is being merged."""


class Spill:
    """Runs of names in one unnamed temporary file, used as a stack: what is nested is written later and
    freed earlier."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self.end = 0
        """Where the next run will begin."""

    def write(self, names: list[str]) -> Iterator[str]:
        """Stores a run, and gives it back lazily. Raises NoSpace, StorageError."""
        run = os.fsencode("\0".join([*names, ""]))
        start = self.end
        if self._file is None:
            self._file = private_file()
        with explained("cannot keep the list of a large directory in a temporary file"):
            while self.end < start + len(run):
                self.end += os.pwrite(self._file.fileno(), run[self.end - start :], self.end)
        return _names(self._file.fileno(), start, self.end)

    def release(self, end: int) -> None:
        """Forgets the runs written since `self.end` was `end`."""
        self.end = end

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _names(descriptor: int, start: int, end: int) -> Iterator[str]:
    rest = b""
    while start < end:
        piece = os.pread(descriptor, min(READ_BYTES, end - start), start)
        if not piece:
            raise SourceError("a temporary file with the list of a large directory was cut short")
        start += len(piece)
        *names, rest = (rest + piece).split(b"\0")
        yield from map(os.fsdecode, names)
