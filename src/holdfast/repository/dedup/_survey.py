"""What the packs hold that backups need, and how much of each is of no use any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._index_object import read_index
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._live import ID_KEPT, LiveChunks
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._moved import Moved, missing_pack
from holdfast.repository.dedup._names import pack_path, parse_object_name
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._table import DIFFERENCE, PackTable
from holdfast.repository.dedup._verify import indexes_of
from holdfast.storage.base import Storage


class PackUse(NamedTuple):
    """What of a pack is needed."""

    pack: PackRef
    bytes: int
    """Of its sealed blocks."""
    live: int
    """Of these, what falls to chunks that are needed, by their share in their block."""
    chunks: int
    """Those that are needed, and in no other pack to which a mark leads."""
    differences: bool
    """Whether some of them are differences."""


class Survey:
    """Takes one manifest after the other, then looks at the packs."""

    def __init__(self, storage: Storage, keys_of: Callable[[str], RunKeys], moved: Moved) -> None:
        self.live = LiveChunks()
        self.named: dict[str, PackRef] = {}
        """Packs that backups name, and those to which marks lead from there."""
        self.uses: dict[str, PackUse] = {}
        """Of those that are there."""
        self.damaged: dict[str, CorruptBackup] = {}
        """Packs that cannot say what they hold, or lack what backups say that they have. What they need is not known,
        so everything that is named must stay as it is."""
        self._storage = storage
        self._keys_of = keys_of
        self._moved = moved
        self._who: dict[str, str] = {}
        # Bases of differences, in whichever pack they lie. A difference keeps its base as long as its pack has
        # anything that is needed, also when it is not needed itself: writers take it for present.
        self._bases = IdTable(ID_LENGTH)

    def add(self, manifest: ManifestReader, backup: str) -> None:
        """A backup. Raises CorruptBackup."""
        self.live.add_manifest(manifest)
        for pack in manifest.packs:
            if pack.hash:
                self._who.setdefault(pack.name, backup)
                self.named.setdefault(pack.name, pack)

    def follow(self) -> None:
        """Follows the marks, after the last backup. Raises CorruptBackup for a pack that is missing: what is needed
        of others cannot be told then, for what has become of it is not known."""
        named = self._moved.reached(self.named.values())
        for pack in named.values():
            if not self._moved.is_there(pack.name) and self._moved.to(pack.name) is None:
                raise missing_pack(pack.name, self._who.get(pack.name, "others"))
        self.named = named

    def look(self) -> None:
        """Reads the tables of all packs, as often as it takes to know all that differences rest on.

        Raises CorruptBackup for what is missing, KeyMissing, KeyWrong.
        """
        origins: dict[str, list[str]] = {}
        for origin in self.named.values():
            # Only what has no mark itself counts for what is elsewhere: so no two packs go because of each other.
            for place in self._moved.reached([origin]) if self._moved.to(origin.name) is not None else ():
                if self._moved.to(place) is None:
                    origins.setdefault(place, []).append(origin.name)
        while True:
            before = len(self._bases), self.live.progress
            self.uses = {}
            for table in self._tables(origins):
                for moved in origins.get(table.name, ()):
                    self.live.move(moved, table.name, table.ids)
                if len(self._bases):
                    self.live.add(table.name, table.ids[self._bases.rows(table.ids) >= 0])
                self._look_at(table)
            if (len(self._bases), self.live.progress) == before:
                break
        for pack, chunks in sorted(self.live.outstanding().items()):
            if not self._moved.is_there(pack):
                raise missing_pack(pack, self._who.get(pack, "others"))
            if pack not in self.damaged and chunks != self.uses[pack].chunks:
                self.damaged[pack] = CorruptBackup(
                    f"pack {pack} lacks {chunks - self.uses[pack].chunks} chunks that it should hold"
                )

    def _look_at(self, table: PackTable) -> None:
        needed = self.live.needed(table.name, table.ids)
        if needed.any():
            self._bases.add(table.bases[:, :ID_LENGTH])
        blocks = table.chunk_blocks[needed]
        shares = table.chunk_lengths[needed] / table.block_raws[blocks]
        self.uses[table.name] = PackUse(
            pack=PackRef(table.name, table.size, table.hash),
            bytes=int(table.block_lengths.sum(dtype=np.int64)),
            live=round(float((table.block_lengths[blocks] * shares).sum())),
            chunks=len(np.unique(table.ids[needed, :ID_KEPT].copy().view(f"V{ID_KEPT}"))),
            differences=bool((table.block_codecs[blocks] == DIFFERENCE).any()),
        )

    def _tables(self, first: dict[str, list[str]]) -> Iterator[PackTable]:
        """Of each pack that is there. What marks lead to comes first: then less is taken for needed elsewhere."""
        runs: dict[str, set[str]] = {}
        for pack in sorted(self.named, key=lambda pack: pack not in first):
            if self._moved.is_there(pack):
                runs.setdefault(parse_object_name(pack)[0], set()).add(pack)
        for run, packs in runs.items():
            keys = self._keys_of(run)
            if len(packs) > 1:  # One object says what many packs do.
                yield from self._indexed(keys, packs)
            for pack in sorted(packs):
                try:
                    with self._storage.open(pack_path(pack)) as file:
                        table = PackReader(file, pack, keys).table
                except CorruptBackup as error:
                    left = {pack}
                    yield from self._indexed(keys, left)
                    if left:
                        self.damaged[pack] = error
                else:
                    yield table

    def _indexed(self, keys: RunKeys, packs: set[str]) -> Iterator[PackTable]:
        """The tables of these, which are taken out, as far as index objects have them."""
        # When one is damaged, the packs are asked.
        with suppress(CorruptBackup, FileNotFoundError):
            for path in indexes_of(self._storage, keys.run):
                with self._storage.open(path) as file:
                    for table in read_index(file, path.removeprefix("index/"), keys):
                        if table.name in packs:
                            packs.remove(table.name)
                            yield table
