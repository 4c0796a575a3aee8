"""Which chunks of which packs backups need, in some 40 bytes for each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import parse_chunks
from holdfast.repository.dedup._column import Column
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._table import U8

ID_KEPT = 16
"""Bytes of an id that are kept. Should two ever begin alike, a chunk is kept that nobody needs."""
_KEY = ID_KEPT + 8
_BATCH = 1 << 16
_LONG = 2048
"""Bytes of a line. Shorter ones are taken as quickly as they are remembered."""

Mask = npt.NDArray[np.bool_]


class LiveChunks:
    """Pairs of a chunk and a pack in which it is needed. A pair is *elsewhere* once the chunk is known to be in
    another pack as well, to which a mark leads: then the pack may go."""

    def __init__(self) -> None:
        self._packs: dict[str, int] = {}
        self._pairs = IdTable(_KEY)
        self._elsewhere = Column(np.bool_)
        # Most of a backup is as in the one before: lines that were taken already, and what their numbers stand for.
        self._order: list[str] = []
        self._taken: set[bytes] = set()

    @property
    def progress(self) -> tuple[int, int]:
        """How many pairs there are, and how many of them are elsewhere."""
        return len(self._pairs), int(np.count_nonzero(self._elsewhere.rows))

    def add(self, pack: str, ids: U8) -> None:
        """Chunks, as rows of 32 bytes, are needed in a pack."""
        self._add(np.full(len(ids), self._number(pack), np.uint64), ids)

    def add_manifest(self, manifest: ManifestReader) -> None:
        """Everything that a backup names. Raises CorruptBackup."""
        numbers = [self._number(pack.name) if pack.hash else -1 for pack in manifest.packs]
        self._reorder([pack.name for pack in manifest.packs])
        packs: list[int] = []
        ids: list[str] = []

        def settle() -> None:
            if ids:
                rows = np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, ID_LENGTH)
                self._add(np.array(packs, np.uint64), rows)
            packs.clear()
            ids.clear()

        for source in manifest.end.sources:
            rows = manifest.rows((source.component, source.name))
            while rows.row is not None:
                for line in rows.parts():
                    if self._was_taken(line):
                        continue
                    for chunk in parse_chunks(line):
                        if chunk.pack >= len(numbers) or numbers[chunk.pack] < 0:
                            raise CorruptBackup(
                                f"{manifest.name}: a chunk is said to lie in a pack that is not listed"
                            )
                        packs.append(numbers[chunk.pack])
                        ids.append(chunk.id)
                    if len(ids) >= _BATCH:
                        settle()
                rows.advance()
        settle()

    def _reorder(self, packs: list[str]) -> None:
        """A line means the same in another backup only if that numbers its packs alike."""
        same = min(len(packs), len(self._order))
        if packs[:same] != self._order[:same]:
            self._taken.clear()
            self._order = packs
        elif len(packs) > same:
            self._order = packs

    def _was_taken(self, line: bytes) -> bool:
        if len(line) < _LONG:
            return False
        digest = blake3(line).digest(length=16)
        if digest in self._taken:
            return True
        self._taken.add(digest)
        return False

    def move(self, pack: str, to: str, ids: U8) -> None:
        """`ids` lie in `to`, which the mark of `pack` names: what was needed there is needed here."""
        rows = self._rows(pack, ids)
        here = rows >= 0
        self.add(to, ids[here])
        self._elsewhere.rows[rows[here]] = True

    def needed(self, pack: str, ids: U8) -> Mask:
        """Which of a pack's chunks are needed there, and are not elsewhere."""
        rows = self._rows(pack, ids)
        found = rows >= 0
        found[found] = ~self._elsewhere.rows[rows[found]]
        return found

    def outstanding(self) -> dict[str, int]:
        """The packs in which something is needed that is not elsewhere, and how many chunks."""
        packs = np.ascontiguousarray(self._pairs.ids[~self._elsewhere.rows, ID_KEPT:]).view(np.uint64)
        numbers, counts = np.unique(packs, return_counts=True)
        found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        return {name: found[number] for name, number in self._packs.items() if number in found}

    def _number(self, pack: str) -> int:
        return self._packs.setdefault(pack, len(self._packs))

    def _add(self, packs: npt.NDArray[np.uint64], ids: U8) -> None:
        self._pairs.add(_keys(packs, ids))
        self._elsewhere.extend(len(self._pairs))

    def _rows(self, pack: str, ids: U8) -> npt.NDArray[np.int64]:
        return self._pairs.rows(_keys(np.full(len(ids), self._number(pack), np.uint64), ids))


def _keys(packs: npt.NDArray[np.uint64], ids: U8) -> U8:
    keys = np.empty((len(ids), _KEY), np.uint8)
    keys[:, :ID_KEPT] = ids[:, :ID_KEPT]
    keys[:, ID_KEPT:] = packs.view(np.uint8).reshape(-1, 8)
    return keys
