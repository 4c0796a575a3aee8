"""A backup read whole: a full archive and the incrementals on it, merged as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from holdfast.errors import CorruptBackup, HostileBackup
from holdfast.model import BackupMetadata, Entry, SourceRecord, order_key
from holdfast.repository._manifest import Row, SourceKey, parse_part
from holdfast.repository._rows import Rows
from holdfast.repository.archive._open import OpenArchive
from holdfast.repository.base import SHA256, Tensors

Pieces = Iterator["bytes | memoryview"]
_WHOLE = 1 << 20


class Extent(NamedTuple):
    """A stretch of a file's content."""

    level: int
    """Which archive of the chain holds it; 0 is the full one."""
    offset: int
    """Where, in that archive's tar."""
    length: int


class Located(NamedTuple):
    """An entry, and where its content lies."""

    entry: Entry
    extents: tuple[Extent, ...]


class StoredArchive:
    """Implements `holdfast.repository.base.StoredBackup`."""

    def __init__(self, metadata: BackupMetadata, levels: Sequence[OpenArchive]) -> None:
        """`levels`: the chain, the full archive first."""
        self.metadata = metadata
        self._levels = levels
        self._last: Located | None = None
        for below, above in pairwise(levels):
            if (above.header.parent, above.header.parent_manifest) != (
                below.header.id,
                below.manifest_digest,
            ):
                raise HostileBackup(
                    f"{above.header.id} rests on another {above.header.parent} than the one that is here",
                    hint="Somebody has replaced the parent. An older full backup may still be good.",
                )

    @property
    def digests(self) -> str:
        return SHA256

    def sources(self) -> Sequence[SourceRecord]:
        return sorted(self._levels[-1].sources, key=lambda record: record.key)

    def entries(self, source: SourceRecord) -> Iterator[Entry]:
        entries = size = 0
        for located in self._located(source):
            self._last = located
            entries += 1
            size += located.entry.size if located.entry.kind == "file" else 0
            yield located.entry
        if (entries, size) != (source.entries, source.bytes):
            raise CorruptBackup(
                f"{self.metadata.backup_id}: {source.component} {source.name} holds {entries} entries "
                f"of {size} bytes, and should hold {source.entries} of {source.bytes}"
            )

    def extents(self, entry: Entry) -> tuple[Extent, ...]:
        """Where an entry's content lies, in order."""
        return self._locate(entry).extents

    def read(self, entry: Entry) -> Pieces:
        located = self._locate(entry)
        if len(located.extents) == 1 and entry.size <= _WHOLE:
            level, offset, length = located.extents[0]
            data = self._levels[level].raw.read_at(offset, length)
            if hashlib.sha256(data).hexdigest() != entry.digest:
                raise _differs(entry)
            return iter((data,))
        return self._read_large(located)

    def _located(self, source: SourceRecord) -> Iterator[Located]:
        return _merge(self._levels, len(self._levels) - 1, (source.component, source.name))

    def _read_large(self, located: Located) -> Pieces:
        digest = hashlib.sha256()
        for level, offset, length in located.extents:
            for piece in self._levels[level].raw.iter_at(offset, length):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != located.entry.digest:
            raise _differs(located.entry)

    def tensors(self, entry: Entry) -> Tensors | None:
        """Always None: nothing short of reading all of a file tells which of its tensors are the same."""
        return None

    def _locate(self, entry: Entry) -> Located:
        if self._last is not None and self._last.entry is entry:
            return self._last
        for source in self.sources():
            for located in self._located(source):
                if located.entry == entry:
                    return located
        raise CorruptBackup(f"{self.metadata.backup_id} does not hold {entry.path}")


def _merge(levels: Sequence[OpenArchive], level: int, key: SourceKey) -> Iterator[Located]:
    rows, whole = levels[level].rows(key)
    if whole:
        while (row := rows.row) is not None:
            if row.entry.kind == "deleted":
                raise CorruptBackup(f"{levels[level].name} deletes {row.entry.path} from nothing")
            yield _locate(levels, level, row, rows, None)
            rows.advance()
        return
    if level == 0:
        raise CorruptBackup(f"{levels[0].name} is a full backup that says it is not whole")
    below = _merge(levels, level - 1, key)
    held = next(below, None)
    while held is not None or rows.row is not None:
        row = rows.row
        held_key = order_key(held.entry.path) if held is not None else ""
        row_key = order_key(row.entry.path) if row is not None else ""
        if held is not None and (row is None or held_key < row_key):
            yield held
            held = next(below, None)
            continue
        assert row is not None
        same = held if held is not None and held_key == row_key else None
        if row.entry.kind != "deleted":
            yield _locate(levels, level, row, rows, same)
        rows.advance()
        if same is not None:
            held = next(below, None)


def _locate(
    levels: Sequence[OpenArchive], level: int, row: Row, rows: Rows, below: Located | None
) -> Located:
    entry = row.entry
    if entry.kind != "file":
        return Located(entry, ())
    if row.offset is not None:
        extents = [Extent(level, row.offset, entry.size)]
    else:
        extents = []
        for line in rows.parts():
            part = parse_part(line)
            pieces = (
                _slice(below, part.offset, part.length)
                if part.copy
                else [Extent(level, part.offset, part.length)]
            )
            for piece in pieces:
                if extents and extents[-1].level == piece.level and sum(extents[-1][1:]) == piece.offset:
                    piece = Extent(piece.level, extents[-1].offset, extents[-1].length + piece.length)
                    extents[-1] = piece
                else:
                    extents.append(piece)
    if sum(extent.length for extent in extents) != entry.size:
        raise CorruptBackup(f"{levels[level].name}: the parts of {entry.path} do not add up to its size")
    if any(extent.offset + extent.length > levels[extent.level].raw_size for extent in extents):
        raise CorruptBackup(
            f"{levels[level].name}: {entry.path} is said to lie beyond the end of the archive"
        )
    return Located(entry, tuple(extents))


def _slice(located: Located | None, offset: int, length: int) -> Iterator[Extent]:
    """The stretches of the parent's version of a file that hold `length` bytes from `offset`."""
    for extent in located.extents if located is not None else ():
        if offset < extent.length and length:
            count = min(extent.length - offset, length)
            yield Extent(extent.level, extent.offset + offset, count)
            length -= count
            offset = 0
        else:
            offset = max(offset - extent.length, 0)
    if length:
        raise CorruptBackup("a part refers to what the parent's version of the file does not hold")


def _differs(entry: Entry) -> CorruptBackup:
    return CorruptBackup(f"{entry.path}: its content is not what the manifest says")
