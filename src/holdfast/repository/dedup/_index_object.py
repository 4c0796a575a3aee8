"""Index objects: the tables of many packs of a run, sealed as one piece.

They say nothing that the packs do not, and are made again from these when they are lost.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final, cast

import zstandard

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import index_path, object_name, parse_object_name
from holdfast.repository.dedup._seal import HEADER_LENGTH, INDEX, INDEX_POSITION, Sealer
from holdfast.repository.dedup._table import LINE_LIMIT, PackTable, parse_columns, parse_head
from holdfast.storage.base import Storage
from holdfast.streams import RandomAccess

INDEX_MAGIC: Final = b"HFINDEX1"
MAX_SEALED_INDEX: Final = 128 << 20
MAX_INDEX: Final = 256 << 20
"""Bytes of an index object before compression."""

_WRITE = 32 << 20
_LEVEL = 3


class IndexWriter:
    """Writes a run's index objects, numbered from 0. For one thread."""

    def __init__(self, storage: Storage, keys: RunKeys) -> None:
        """A run makes one of these and no second: see `_seal`."""
        self.names: list[str] = []
        """The objects that are written."""
        self.size = 0
        """Bytes of them."""
        self._storage = storage
        self._keys = keys
        self._number = 0
        self._records: list[bytes] = []
        self._waiting = 0

    def add(self, table: PackTable) -> None:
        """Takes the table of a finished pack of this run. Writes an object once there is enough for one.

        Raises StorageError.
        """
        if parse_object_name(table.name)[0] != self._keys.run:
            raise ValueError(f"pack {table.name} is not of run {self._keys.run}")
        record = table.encode(pack=table.name, size=table.size, hash=table.hash)
        self._records.append(record)
        self._waiting += len(record)
        if self._waiting >= _WRITE:
            self.flush()

    def flush(self) -> None:
        """Makes what has been taken durable. Raises StorageError; another try takes the next number."""
        if not self._records:
            return
        number, self._number = self._number, self._number + 1
        name = object_name(self._keys.run, number)
        sealer = Sealer(self._keys, INDEX_MAGIC, number)
        packed = zstandard.ZstdCompressor(_LEVEL).compress(b"".join(self._records))
        upload = self._storage.create(index_path(name))
        try:
            upload.write(sealer.header)
            upload.write(sealer.seal(INDEX, INDEX_POSITION, packed))
            upload.publish()
        finally:
            upload.abort()
        self.names.append(name)
        self.size += upload.size
        self._records = []
        self._waiting = 0


def read_index(source: RandomAccess, name: str, keys: RunKeys) -> Iterator[PackTable]:
    """The tables in an index object. `keys`: those of the run that its name begins with.

    Takes the memory of the object as it lies there, and of one table.

    Raises CorruptBackup, perhaps after some tables.
    """
    run, number = parse_object_name(name)
    if run != keys.run:
        raise ValueError(f"index object {name} is not of run {keys.run}")
    what = f"index object {name}"
    if source.size > MAX_SEALED_INDEX:
        raise CorruptBackup(f"{what} has {source.size} bytes, more than one may have", hint=_HINT)
    data = source.read_at(0, source.size)
    sealer = Sealer(keys, INDEX_MAGIC, number)
    if data[: len(INDEX_MAGIC) - 1] == INDEX_MAGIC[:-1] and INDEX_MAGIC[-1:] < data[7:8] <= b"9":
        raise CorruptBackup(
            f"{what} says that it is of version {data[7:8].decode()}, which a newer Holdfast wrote",
            hint="Update Holdfast: `holdfast --version` shows yours.",
        )
    if data[:HEADER_LENGTH] != sealer.header:
        raise CorruptBackup(f"{what} does not begin as one of that name does", hint=_HINT)
    packed = sealer.open(INDEX, INDEX_POSITION, memoryview(data)[HEADER_LENGTH:])
    if packed is None:
        raise CorruptBackup(f"{what} is damaged, or sealed with a key that is not this run's", hint=_HINT)
    del data
    yield from _tables(packed, what, run)


_HINT = "Restoring needs no index: the packs say the same. Put it back from a copy, or delete it."


def _tables(packed: bytes, what: str, run: str) -> Iterator[PackTable]:
    left = MAX_INDEX
    try:
        with (
            zstandard.ZstdDecompressor().stream_reader(packed) as raw,
            # It has what io.BufferedReader needs, and says so nowhere.
            io.BufferedReader(cast("io.RawIOBase", raw), 1 << 16) as reader,
        ):
            while line := reader.readline(LINE_LIMIT + 1):
                head = parse_head(line, what)
                left -= len(line) + head.bytes
                if not line.endswith(b"\n") or not head.pack or left < 0:
                    raise CorruptBackup(f"{what} has a table that does not begin as one must", hint=_HINT)
                if parse_object_name(head.pack)[0] != run:
                    raise CorruptBackup(f"{what} speaks of a pack of another run, {head.pack}", hint=_HINT)
                yield parse_columns(head, reader.read(head.bytes), table_end=None)
    except zstandard.ZstdError as error:
        raise CorruptBackup(f"{what} does not decompress: {error}", hint=_HINT) from error
