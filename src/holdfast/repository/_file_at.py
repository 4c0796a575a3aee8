"""A file read from a place of its own."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FileAt(io.RawIOBase):
    """A file from an offset, without moving the place where others read it."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = os.preadv(self._fd, [buffer], self._offset)
        self._offset += count
        return count
