"""Reads packs. Nothing that a pack says of itself is believed before it is bounded and authenticated."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from blake3 import blake3

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._codec import decode
from holdfast.repository.dedup._ids import ID_LENGTH, Bytes, chunk_id
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import parse_object_name
from holdfast.repository.dedup._seal import BLOCK, HEADER_LENGTH, TABLE, TABLE_POSITION, TAG_LENGTH, Sealer
from holdfast.repository.dedup._table import (
    MAX_PACK,
    MAX_TABLE,
    PACK_END,
    PACK_MAGIC,
    BlockRow,
    PackTable,
    parse_table,
)
from holdfast.streams import RandomAccess

Resolve: TypeAlias = Callable[[bytes], Bytes]
"""Gives the content of the chunk that a difference is taken from, by its id. Raises CorruptBackup for none."""

_TRAILER = struct.Struct("<I32s8s")
_USUAL_TAIL: Final = 64 << 10
_VERSION_LENGTH = 2


class PackReader:
    """A pack opened for reading. Safe to use from several threads, as its source is. The source stays open."""

    def __init__(
        self, source: RandomAccess, name: str, keys: RunKeys, *, table: PackTable | None = None
    ) -> None:
        """`keys`: those of the run that the name begins with. `table`: when it is known from an index; then nothing
        is read before a block is.

        Raises CorruptBackup for what is not a whole pack of that name.
        """
        run, number = parse_object_name(name)
        if run != keys.run:
            raise ValueError(f"pack {name} is not of run {keys.run}")
        self.name = name
        self.source = source
        self._keys = keys
        self._sealer = Sealer(keys, PACK_MAGIC, number)
        self.table = self._read_table() if table is None else table
        self._blocks = self.table.blocks()

    def block(self, position: int, resolve: Resolve) -> bytes | memoryview:
        """The raw bytes of a block. Raises CorruptBackup, and what `resolve` raises."""
        row = self._blocks[position]
        return self._open_block(row, self._read(row.offset, row.length), resolve)

    def authenticate(self, position: int) -> None:
        """Raises CorruptBackup for a block that is not as it was sealed."""
        row = self._blocks[position]
        if self._sealer.open(BLOCK, position, self._read(row.offset, row.length)) is None:
            raise CorruptBackup(f"block {position} of pack {self.name} is damaged, or of another run")

    def compare(self, position: int, raw: Bytes) -> None:
        """Compares the chunks of an opened block with their ids. Raises CorruptBackup."""
        view = memoryview(raw)
        rows = slice(*np.searchsorted(self.table.chunk_blocks, [position, position + 1]).tolist())
        ids = self.table.ids[rows].tobytes()
        places = zip(
            range(0, len(ids), ID_LENGTH),
            self.table.chunk_offsets[rows].tolist(),
            self.table.chunk_lengths[rows].tolist(),
            strict=True,
        )
        for at, offset, length in places:
            name = ids[at : at + ID_LENGTH]
            if chunk_id(self._keys.id_key, view[offset : offset + length]) != name:
                raise CorruptBackup(
                    f"block {position} of pack {self.name} does not hold chunk {name.hex()}, as its table says"
                )

    def verify(self, resolve: Resolve) -> None:
        """Reads everything, and compares every chunk with its id and the pack with its digest.

        Raises CorruptBackup, and what `resolve` raises.
        """
        digest = blake3(self._read(0, HEADER_LENGTH))
        end = HEADER_LENGTH
        for row in self._blocks:
            sealed = self._read(row.offset, row.length)
            digest.update(sealed)
            self.compare(row.position, self._open_block(row, sealed, resolve))
            end = row.offset + row.length
        _, expected, _ = self._read_trailer()
        digest.update(self._read(end, self.source.size - end - (_TRAILER.size - 4)))
        found = digest.hexdigest()
        if self.source.size != self.table.size or found != expected.hex() or found != self.table.hash:
            raise CorruptBackup(f"pack {self.name} is damaged: its digest is another one")

    def _open_block(self, row: BlockRow, sealed: bytes, resolve: Resolve) -> bytes | memoryview:
        what = f"block {row.position} of pack {self.name}"
        encoded = self._sealer.open(BLOCK, row.position, sealed)
        if encoded is None:
            raise CorruptBackup(f"{what} is damaged, or of another run")
        base = None if row.base is None else resolve(row.base)
        try:
            return decode(row.codec, encoded, row.raw, base)
        except CorruptBackup as error:
            raise CorruptBackup(f"{what}: {error}", hint=error.hint) from error

    def _read_table(self) -> PackTable:
        size = self.source.size
        if size > MAX_PACK:
            raise CorruptBackup(f"{self.name} has {size} bytes, more than a pack may have")
        self._check_header(self.source.read_at(0, HEADER_LENGTH))
        length, digest, tail = self._read_trailer()
        end = size - _TRAILER.size
        if not TAG_LENGTH <= length <= min(end - HEADER_LENGTH, MAX_TABLE):
            raise CorruptBackup(
                f"pack {self.name} is cut short or damaged: its table cannot have {length} bytes"
            )
        missing = length - (len(tail) - _TRAILER.size)
        if missing > 0:
            tail = self._read(end - length, missing) + tail
        start = len(tail) - _TRAILER.size - length
        packed = self._sealer.open(TABLE, TABLE_POSITION, tail[start : start + length])
        if packed is None:
            raise CorruptBackup(
                f"the table of pack {self.name} is damaged, or sealed with a key that is not this run's"
            )
        return parse_table(packed, pack=self.name, size=size, digest=digest.hex(), table_end=end - length)

    def _check_header(self, header: bytes) -> None:
        if header == self._sealer.header:
            return
        kind = PACK_MAGIC[:-_VERSION_LENGTH]
        version = header[len(kind) : len(PACK_MAGIC)]
        if header.startswith(kind) and version.isdigit() and version > PACK_MAGIC[len(kind) :]:
            raise CorruptBackup(
                f"pack {self.name} says that it is of version {int(version)}, which a newer Holdfast wrote",
                hint="Update Holdfast: `holdfast --version` shows yours.",
            )
        if header.startswith(PACK_MAGIC) and len(header) == HEADER_LENGTH:
            _, run, number = struct.unpack("<8s16sI", header)
            raise CorruptBackup(
                f"{self.name} holds another pack, {run.hex()}-{number}",
                hint="Put each pack back under its own name, or take one that belongs elsewhere out.",
            )
        raise CorruptBackup(f"{self.name} does not begin as a pack does")

    def _read_trailer(self) -> tuple[int, bytes, bytes]:
        """Length of the sealed table, digest, and the last bytes of the pack, the trailer included."""
        size = self.source.size
        usual = min(size, _USUAL_TAIL)
        tail = self._read(size - usual, usual)
        if size < HEADER_LENGTH + _TRAILER.size or not tail.endswith(PACK_END):
            raise CorruptBackup(f"pack {self.name} is cut short, or damaged at its end")
        length, digest, _ = _TRAILER.unpack_from(tail, usual - _TRAILER.size)
        return length, digest, tail

    def _read(self, offset: int, length: int) -> bytes:
        data = self.source.read_at(offset, length)
        if len(data) != length:
            raise CorruptBackup(f"pack {self.name} is cut short: it ends within {length} bytes from {offset}")
        return data
