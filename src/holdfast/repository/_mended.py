"""An object of which some sectors are read elsewhere, because they were lost."""

from __future__ import annotations

import tempfile
import threading
from bisect import bisect_left
from types import TracebackType
from typing import Final, Self

from holdfast.durable import explained, temp_directory
from holdfast.errors import StorageError
from holdfast.storage.base import OpenObject

SECTOR: Final = 4096
"""Bytes."""
_HELD = 16 << 20
"""Bytes of sectors that are held in memory; more go to a private file."""


class Patches:
    """The content of some sectors of an object. Several threads may read it."""

    def __init__(self) -> None:
        self.sectors: list[int] = []
        """Their numbers in the object, ascending."""
        self._mutex = threading.Lock()
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed in `close`
            _HELD, dir=str(temp_directory()), prefix="holdfast-"
        )

    def add(self, sector: int, content: bytes) -> None:
        """Adds one after the last. Raises StorageError when there is no room for it."""
        with self._mutex, explained("cannot write a temporary file"):
            self._file.seek(len(self.sectors) * SECTOR)
            self._file.write(content)
            self.sectors.append(sector)

    def read(self, position: int) -> bytes:
        """The content of the sector that has this position among them."""
        with self._mutex, explained("cannot read a temporary file"):
            self._file.seek(position * SECTOR)
            return self._file.read(SECTOR)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MendedObject:
    """Implements `holdfast.storage.base.OpenObject`: an object with its bad sectors mended. It owns both parts."""

    def __init__(self, source: OpenObject, patches: Patches, size: int, name: str) -> None:
        self.size = size
        self.bad_sectors = len(patches.sectors)
        """How many sectors were bad; 0 where the object had only become longer."""
        self._source = source
        self._patches = patches
        self._name = name

    def read_at(self, offset: int, length: int) -> bytes:
        """As the protocol says. What is mended is not asked of the storage. Raises StorageError."""
        if offset < 0 or length < 0:
            raise ValueError("an offset or a length is negative")
        sectors = self._patches.sectors
        end = min(offset + length, self.size)
        pieces: list[bytes] = []
        while offset < end:
            position = bisect_left(sectors, offset // SECTOR)
            start = sectors[position] * SECTOR if position < len(sectors) else end
            if start <= offset:
                stop = min(start + SECTOR, end)
                pieces.append(self._patches.read(position)[offset - start : stop - start])
            else:
                stop = min(start, end)
                pieces.append(self._sound(offset, stop - offset))
            offset = stop
        return b"".join(pieces)

    def close(self) -> None:
        self._source.close()
        self._patches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sound(self, offset: int, length: int) -> bytes:
        with explained(f"cannot read {self._name}"):
            data = self._source.read_at(offset, length)
        if len(data) != length:
            raise StorageError(f"{self._name} gave {len(data)} of {length} bytes at {offset}")
        return data
