"""Which chunk a writer stored last of each tensor, as a base for differences. Losing it costs space alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3

from holdfast.repository.dedup._column import Column
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._record_file import RecordFile

IDENTITY_LENGTH = 16

_MAGIC = b"HFBASES1"
_ROW = IDENTITY_LENGTH + ID_LENGTH
_RECORD_ROWS = 1 << 16
_WORN_ROWS = 1 << 12


def tensor_identity(id_key: bytes, name: str, dtype: str, shape: Sequence[int], place: int) -> bytes:
    """What a piece of a tensor goes by from version to version: 16 bytes, keyed.

    `place`: its offset in the tensor, in bytes.
    """
    text = json.dumps([name, dtype, list(shape), place]).encode()
    return blake3(text, key=id_key).digest(length=IDENTITY_LENGTH)


class TensorBases:
    """For each tensor identity the id of the chunk that was last stored whole, never as a difference.

    Whether that chunk is still stored, `Known` tells. For one thread at a time; processes may share the file.
    """

    def __init__(self, directory: Path, *, repository: str, writer: str, id_key: bytes) -> None:
        """Reads the memory that is kept in `directory`, which must exist. One of another owner counts as empty.

        Raises StorageError when the file cannot be read.
        """
        self._file = RecordFile(directory / "bases", _MAGIC, owner=(repository, writer), key=id_key)
        self._identities = IdTable(IDENTITY_LENGTH)
        self._ids = Column(np.uint8, ID_LENGTH)
        self._unsaved: dict[bytes, bytes] = {}
        rows = 0
        for record in self._file.read():
            rows += len(record) // _ROW
            self._take(record)
        if rows > 2 * len(self._identities) + _WORN_ROWS:
            self._file.rewrite(self._compact)

    def __len__(self) -> int:
        return len(self._identities) + sum(self._identities.row(name) < 0 for name in self._unsaved)

    def get(self, identity: bytes) -> bytes | None:
        """The chunk of the latest version that is stored whole."""
        found = self._unsaved.get(identity)
        if found is None and (row := self._identities.row(identity)) >= 0:
            found = self._ids.rows[row].tobytes()
        return found

    def put(self, identity: bytes, name: bytes) -> None:
        """Remembers a chunk, once `save` is called. Raises ValueError for ids of other lengths."""
        if len(identity) != IDENTITY_LENGTH or len(name) != ID_LENGTH:
            raise ValueError("an identity has 16 bytes, and an id 32")
        self._unsaved[identity] = name

    def save(self) -> None:
        """Makes what was put durable. Raises StorageError."""
        rows = [identity + name for identity, name in self._unsaved.items()]
        for start in range(0, len(rows), _RECORD_ROWS):
            record = b"".join(rows[start : start + _RECORD_ROWS])
            self._file.append(record)
            self._take(record)
        self._unsaved = {}

    def _take(self, record: bytes) -> None:
        table = np.frombuffer(record, np.uint8).reshape(-1, _ROW)
        rows = self._identities.add(table[:, :IDENTITY_LENGTH])
        self._ids.extend(len(self._identities))
        self._ids.rows[rows] = table[:, IDENTITY_LENGTH:]

    def _compact(self, records: Iterator[bytes]) -> Iterator[bytes]:
        """Each identity once, also those that other processes have added meanwhile."""
        for record in records:
            self._take(record)
        table = np.hstack([self._identities.ids, self._ids.rows])
        for start in range(0, len(table), _RECORD_ROWS):
            yield table[start : start + _RECORD_ROWS].tobytes()
