"""Objects with parity, and damage done to them."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

from holdfast.errors import CorruptBackup
from holdfast.repository._parity import mend, parity_name, write_parity
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import MemoryObject, MemoryStorage
from holdfast.streams import RandomAccess

MIB = 1 << 20
SECTOR = 4096
NAME = "packs/ab/ab"
PARITY = parity_name(NAME)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def stored(content: bytes, *, group: int = 32) -> MemoryStorage:
    """A storage with an object and its parity."""
    storage = MemoryStorage()
    storage.put(NAME, content)
    assert write_parity(storage, NAME, group=group) == len(storage.get(PARITY, limit=1 << 30))
    return storage


def mended(storage: MemoryStorage | LocalStorage) -> bytes | None:
    found = mend(storage, NAME)
    if found is None:
        return None
    with found:
        content = found.read_at(0, found.size + 1)
        assert len(content) == found.size
        return content


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def without(data: bytes, sectors: range | list[int]) -> bytes:
    """The data with other bytes in some sectors."""
    damaged = bytearray(data)
    for sector in sectors:
        stretch = slice(sector * SECTOR, (sector + 1) * SECTOR)
        damaged[stretch] = bytes(255 - byte for byte in damaged[stretch])
    return bytes(damaged)


def check_for(content: bytes) -> Callable[[RandomAccess], None]:
    def check(found: RandomAccess) -> None:
        if found.read_at(0, found.size + 1) != content:
            raise CorruptBackup("not what it must hold")

    return check


class FailingDisk(MemoryStorage):
    """A disk that gives an error, and no data, for some sectors of an object."""

    def __init__(self, name: str, sectors: list[int], error: Exception) -> None:
        super().__init__()
        self.name, self.sectors, self.error = name, sectors, error

    def open(self, name: str) -> MemoryObject:
        found = super().open(name)
        if name == self.name:
            read_at = found.read_at

            def fail(offset: int, length: int) -> bytes:
                if any(
                    offset < (one + 1) * SECTOR and one * SECTOR < offset + length for one in self.sectors
                ):
                    raise self.error
                return read_at(offset, length)

            found.read_at = fail  # type: ignore[method-assign]
        return found


def header(size: int, group: int, magic: bytes = b"HFPARITY") -> bytes:
    fields = struct.pack("<8sQI", magic, size, group)
    return fields + struct.pack("<I", zlib.crc32(fields))
