"""What is remembered of what one writer has stored, so that a host that cannot read still finds its chunks again.

Losing it, or its being damaged, costs space: chunks are stored once more. What it says must be true, so packs that
are no longer there, or whose key file is not the one that was written, must be taken out of it before a run relies on
it. There is one memory for each set of recipients: what others can open is of no use to these.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from holdfast.repository.dedup._column import Column
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import object_name, parse_object_name
from holdfast.repository.dedup._record_file import RecordFile
from holdfast.repository.dedup._table import DIFFERENCE, PackTable, base_packs

_MAGIC = b"HFKNOWN3"
# A record of a pack: what it is; run and number of the pack, its size and digest, the SHA-256 of its run's key file;
# how many chunks, and packs in which the bases of its differences lie. Then ids, lengths, and runs and numbers
# of those packs.
_PACK = struct.Struct("<4s16sIQ32s32sII")
_OF_PACK = b"PACK"
# A record of index objects that were looked at: what it is; as JSON their names, and who says to have written them.
_OF_INDEXES = b"INDX"
_BASE_PACK = struct.Struct("<16sI")
_DIFFERENCE = 1 << 31
"""Added to the length of a chunk that is stored as a difference."""
_BATCH = 1 << 16
"""Chunks, or names, that are taken together."""


class KnownChunk(NamedTuple):
    """A chunk that is stored."""

    pack: str
    length: int
    is_difference: bool = False


class _Pack(NamedTuple):
    name: str
    size: int
    hash: str
    key_file: str
    chunks: int
    bases: tuple[str, ...]


class Known:
    """The chunks of one writer in one repository. For one thread at a time; processes may share the file."""

    def __init__(
        self, directory: Path, *, repository: str, writer: str, id_key: bytes, audience: str = ""
    ) -> None:
        """Reads the memory that is kept in `directory`, which must exist.

        `writer`: whose chunks, by its public key or its fingerprint; those of others are never mixed in. `audience`:
        the recipients, who can open them; empty where nothing is encrypted. A memory of another repository or id key
        counts as empty.

        Raises StorageError when the file cannot be read.
        """
        self._repository = repository
        self._writer = writer
        self._id_key = id_key
        name = f"chunks-{hashlib.sha256(f'{writer} {audience}'.encode()).hexdigest()[:16]}"
        self._file = RecordFile(directory / name, _MAGIC, owner=(repository, writer, audience), key=id_key)
        self._load()

    def __len__(self) -> int:
        return len(self._ids)

    def has(self, name: bytes) -> bool:
        """Whether the chunk of that id is stored, and durable."""
        return self._ids.row(name) >= 0

    def get(self, name: bytes) -> KnownChunk | None:
        """The chunk of that id; None when it is not known to be stored."""
        row = self._ids.row(name)
        return self._chunk(row) if row >= 0 else None

    def find_many(self, names: Sequence[bytes]) -> list[KnownChunk | None]:
        """As `get`, for many: a tenth of the time."""
        rows = self._ids.rows(np.frombuffer(b"".join(names), np.uint8).reshape(-1, ID_LENGTH))
        return [self._chunk(row) if row >= 0 else None for row in rows.tolist()]

    def packs(self) -> dict[str, int]:
        """Every pack that chunks are in, and its size in bytes."""
        return {pack.name: pack.size for pack in self._packs}

    def hashes(self) -> dict[str, str]:
        """Every pack that chunks are in, and the digest in its trailer, hexadecimal."""
        return {pack.name: pack.hash for pack in self._packs}

    def key_files(self) -> dict[str, str]:
        """For each run the SHA-256 of its key file as it was when it was known to be good, hexadecimal."""
        return {pack.name.partition("-")[0]: pack.key_file for pack in self._packs}

    def bases(self) -> dict[str, tuple[str, ...]]:
        """For each pack with differences the packs in which their bases lie."""
        return {pack.name: pack.bases for pack in self._packs if pack.bases}

    def learn(self, index: str, writer: str, key_file: str, tables: Iterable[PackTable]) -> int:
        """Remembers, durably, what an index object says of packs, and that it has said so. `writer`: the fingerprint
        of who has signed it; `key_file`: the SHA-256 of that of its run. Returns how many packs were not known yet.

        Raises StorageError, and what `tables` raises; what was taken by then stays.
        """
        learnt = chunks = 0
        records: list[bytes] = []
        for table in tables:
            if table.name in self._names:
                continue
            records.append(_record(table, key_file))
            learnt += 1
            chunks += table.chunk_count
            if chunks >= _BATCH:
                self._keep(records)
                records, chunks = [], 0
        self._keep(records, looked_at={index: writer})
        return learnt

    def note(self, indexes: Mapping[str, str]) -> None:
        """Remembers, durably, index objects that need not be looked at again: their names, and the fingerprints of
        those who say to have written them. Raises StorageError."""
        names = sorted(indexes)
        # Others choose how many there are, and a record has a limit.
        for start in range(0, len(names), _BATCH):
            self._keep([], looked_at={name: indexes[name] for name in names[start : start + _BATCH]})

    def _keep(self, records: list[bytes], looked_at: Mapping[str, str] | None = None) -> None:
        notes = [_OF_INDEXES + json.dumps(looked_at).encode()] if looked_at else []
        self._file.append(*records, *notes)
        self._take(records)
        self.indexes.update(looked_at or {})

    def add(self, keys: RunKeys, table: PackTable, key_file: str = "0" * 64) -> None:
        """Remembers, durably, what a pack holds that is durable itself. `keys`: those of its run, and `key_file` the
        SHA-256 of their file.

        Raises StorageError; ValueError for a run of another writer, repository or id key.
        """
        if (keys.repository, keys.writer, keys.id_key) != (self._repository, self._writer, self._id_key):
            raise ValueError(f"run {keys.run} is not of the writer whose chunks are remembered here")
        if parse_object_name(table.name)[0] != keys.run:
            raise ValueError(f"pack {table.name} is not of run {keys.run}")
        self._keep([_record(table, key_file)])

    def take_over(self, other: Known, key_files: Mapping[str, str]) -> None:
        """Remembers, durably, what `other` does of the runs in `key_files`, whose key files are now these: they were
        given to the recipients of this one. Raises StorageError."""
        for record in other._file.read():
            if not record.startswith(_OF_PACK):
                continue
            pack = _pack(record)
            digest = key_files.get(pack.name.partition("-")[0])
            if digest is not None and pack.name not in self._names:
                head = list(_PACK.unpack_from(record))
                head[5] = bytes.fromhex(digest)
                self._keep([_PACK.pack(*head) + record[_PACK.size :]])

    def forget_packs(self, names: Collection[str]) -> None:
        """Forgets, durably, packs that are gone or condemned, those with differences from chunks in them, and their
        chunks where no other pack has them.

        Raises StorageError.
        """
        self.drop(resting_on(names, self.rests()))

    def rests(self) -> dict[str, tuple[str, ...]]:
        """Every pack that chunks are in, and the packs that it rests on."""
        return {pack.name: pack.bases for pack in self._packs}

    def drop(self, gone: Collection[str]) -> None:
        """Forgets, durably, these packs and no others. Raises StorageError."""
        if self._names.isdisjoint(gone):
            return
        self._file.rewrite(
            lambda records: (
                record
                for record in records
                if not record.startswith(_OF_PACK) or _pack(record).name not in gone
            )
        )
        self._load()

    def move_bases(self, moved: Mapping[str, Collection[str]], packs: Collection[str]) -> None:
        """Remembers, durably, of `packs` that bases which lay in a pack are in those now that `moved` gives for it.

        Raises StorageError.
        """
        concerned = {
            pack.name
            for pack in self._packs
            if pack.name in packs and any(base in moved for base in pack.bases)
        }
        if not concerned:
            return

        def change(record: bytes) -> bytes:
            if not record.startswith(_OF_PACK) or (pack := _pack(record)).name not in concerned:
                return record
            bases = sorted({place for base in pack.bases for place in moved.get(base, (base,))})
            head = list(_PACK.unpack_from(record))
            head[7] = len(bases)
            end = _PACK.size + pack.chunks * (ID_LENGTH + 4)
            named = [parse_object_name(base) for base in bases]
            tail = [_BASE_PACK.pack(bytes.fromhex(run), number) for run, number in named]
            return b"".join([_PACK.pack(*head), record[_PACK.size : end], *tail])

        self._file.rewrite(lambda records: map(change, records))
        self._load()

    def _chunk(self, row: int) -> KnownChunk:
        pack = self._packs[int(self._chunk_packs.rows[row])]
        length = int(self._lengths.rows[row])
        return KnownChunk(pack.name, length & ~_DIFFERENCE, length >= _DIFFERENCE)

    def _load(self) -> None:
        self._ids = IdTable(ID_LENGTH)
        self._chunk_packs = Column(np.uint32)
        self._lengths = Column(np.uint32)
        self._packs: list[_Pack] = []
        self._names: set[str] = set()
        self.indexes: dict[str, str] = {}
        """Index objects that were looked at, and who says to have written them: see `note`."""
        # Packs of some dozen chunks each are taken together: each step costs as much for few as for many.
        records: list[bytes] = []
        chunks = 0
        for record in self._file.read():
            if record.startswith(_OF_INDEXES):
                self.indexes.update(json.loads(record[len(_OF_INDEXES) :]))
                continue
            records.append(record)
            chunks += _pack(record).chunks
            if chunks >= _BATCH:
                self._take(records)
                records, chunks = [], 0
        self._take(records)

    def _take(self, records: list[bytes]) -> None:
        if not records:
            return
        heads = [_pack(record) for record in records]
        counts = [pack.chunks for pack in heads]
        ids = [
            np.frombuffer(record, np.uint8, count * ID_LENGTH, _PACK.size)
            for record, count in zip(records, counts, strict=True)
        ]
        lengths = [
            np.frombuffer(record, "<u4", count, _PACK.size + count * ID_LENGTH)
            for record, count in zip(records, counts, strict=True)
        ]
        packs = np.repeat(np.arange(len(self._packs), len(self._packs) + len(heads)), counts)
        self._packs += heads
        self._names.update(pack.name for pack in heads)
        rows = self._ids.add(np.concatenate(ids).reshape(-1, ID_LENGTH))
        self._chunk_packs.extend(len(self._ids))
        self._lengths.extend(len(self._ids))
        self._chunk_packs.rows[rows] = packs
        self._lengths.rows[rows] = np.concatenate(lengths)


def resting_on(names: Collection[str], rests: Mapping[str, Sequence[str]]) -> set[str]:
    """Of the packs in `rests`, which names for each those that it rests on: the named ones, those that rest on one of
    them, and those that rest on one that is not there."""
    gone = set(names) & rests.keys()
    while more := [
        name
        for name, bases in rests.items()
        if name not in gone and any(base not in rests or base in gone for base in bases)
    ]:
        gone.update(more)
    return gone


def _record(table: PackTable, key_file: str) -> bytes:
    run, number = parse_object_name(table.name)
    bases = base_packs(table)
    lengths = table.chunk_lengths.astype("<u4")
    lengths[table.block_codecs[table.chunk_blocks] == DIFFERENCE] |= _DIFFERENCE
    head = _PACK.pack(
        _OF_PACK,
        bytes.fromhex(run),
        number,
        table.size,
        bytes.fromhex(table.hash),
        bytes.fromhex(key_file),
        table.chunk_count,
        len(bases),
    )
    return b"".join([head, table.ids.tobytes(), lengths.tobytes(), *bases])


def _pack(record: bytes) -> _Pack:
    """What a record says of its pack. Records are ours: they bear our key's digest."""
    _, run, number, size, digest, key_file, count, base_count = _PACK.unpack_from(record)
    end = _PACK.size + count * (ID_LENGTH + 4)
    bases = tuple(
        object_name(base.hex(), place)
        for base, place in _BASE_PACK.iter_unpack(record[end : end + base_count * _BASE_PACK.size])
    )
    return _Pack(object_name(run.hex(), number), size, digest.hex(), key_file.hex(), count, bases)
