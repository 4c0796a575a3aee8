"""The list of a backup, when what its chunks lie in has changed since it was made.

`gc` writes chunks to other packs. And a backup's list has all packs of the one that it was compared with in their
places, needed or not: it grows from backup to backup, until it is written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from holdfast.durable import private_file
from holdfast.model import BackupMetadata
from holdfast.repository import _lists as lists
from holdfast.repository import _manifest as manifest
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import CHUNKS_DIGEST, ChunkRef, PackRef
from holdfast.repository.dedup._memories import Memories
from holdfast.state import LocalState

_CHUNKS = b'{"chunks":'
_IN_LINE = b',"pack":'
_WORN = 1000
"""Places of packs that are not needed, from which a list is written anew if they are most of it."""


def is_worn(packs: Sequence[PackRef]) -> bool:
    """Whether a list of packs consists mostly of such as are not needed."""
    unneeded = sum(not pack.hash for pack in packs)
    return unneeded > _WORN and unneeded * 2 > len(packs)


def relocate(state: LocalState, metadata: BackupMetadata, found: ParentList, known: Memories) -> bool:
    """Writes a backup's list anew, so that it names only packs that are known and needed; else the next run would
    read again what has not changed. `found`: that list. False when a chunk of it is not known to be anywhere.

    Raises StorageError, OSError, CorruptBackup.
    """
    places = _Places(found.packs, known)
    with closing(private_file()) as rows:
        lines = lists.lines_of(state, metadata)
        head = next(lines)
        for line in lines:
            if manifest.parse_packs(line) is not None:
                continue
            changed = _relocated(line, places)
            if changed is None:
                return False
            rows.write(changed)

        def all_lines() -> Iterator[bytes]:
            yield head
            yield from manifest.packs_lines(places.packs)
            rows.seek(0)
            yield from rows

        lists.save(state, metadata, all_lines())
    return True


class _Places:
    """Where chunks are by now."""

    def __init__(self, before: Sequence[PackRef], known: Memories) -> None:
        self.packs: list[PackRef] = []
        """What was asked for, by its new number."""
        self._before = before
        self._known = known
        self._sizes = known.packs()
        self._hashes = known.hashes()
        self._numbers: dict[str, int] = {}

    def find(self, chunk: ChunkRef) -> ChunkRef | None:
        """The chunk, with the new number of the pack that it is in; None where that is not known."""
        pack = self._before[chunk.pack] if chunk.pack < len(self._before) else None
        name = pack.name if pack is not None and pack.hash else ""
        if name not in self._sizes:
            place = self._known.get(bytes.fromhex(chunk.id))
            if place is None:
                return None
            name = place.pack
        if name not in self._numbers:
            self._numbers[name] = len(self.packs)
            self.packs.append(PackRef(name, self._sizes[name], self._hashes[name]))
        return chunk._replace(pack=self._numbers[name])


def _relocated(line: bytes, places: _Places) -> bytes | None:
    if line.startswith(_CHUNKS):
        found = [places.find(chunk) for chunk in manifest.parse_chunks(line)]
        known = [chunk for chunk in found if chunk is not None]
        return manifest.chunks_line(known) if len(known) == len(found) else None
    if _IN_LINE in line and manifest.is_entry(line):
        row = manifest.parse_entry(line)
        if row.pack is not None:
            chunk = places.find(ChunkRef(row.entry.size, row.entry.digest, row.pack))
            if chunk is None:
                return None
            return manifest.entry_line(row.entry, digest=CHUNKS_DIGEST, pack=chunk.pack)
    return line
