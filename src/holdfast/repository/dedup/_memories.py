"""What is known to be stored: by this host, and by the writers that it was told to trust.

Each writer has a memory of its own, so what one of them said goes as soon as it is trusted no more. A writer that is
trusted can say that a chunk is stored where something else is, and only reading would tell. So nothing is learnt of
anybody whom nobody has named here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from holdfast.crypto import fingerprint
from holdfast.errors import CorruptBackup, StorageError
from holdfast.repository._parity_storage import checked
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._index_object import audience_digest, claimed_writer, open_index
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._known import Known, KnownChunk, resting_on
from holdfast.repository.dedup._names import pack_path, parse_object_name
from holdfast.repository.dedup._table import PackTable, pack_name
from holdfast.storage.base import Storage

T = TypeVar("T")


class Memories:
    """The memories of several writers, as one. What this host has stored itself comes first."""

    def __init__(self, own: Known, by_writer: dict[str, Known]) -> None:
        """`by_writer`: the memory of each writer that is believed, by its fingerprint: `own` before all others."""
        self.own = own
        self.by_writer = by_writer

    def get(self, name: bytes) -> KnownChunk | None:
        """The chunk of that id; None when it is not known to be stored."""
        for known in self.by_writer.values():
            if (found := known.get(name)) is not None:
                return found
        return None

    def find_many(self, names: Sequence[bytes]) -> list[KnownChunk | None]:
        """As `get`, for many: a tenth of the time."""
        found = self.own.find_many(names)
        for known in self.by_writer.values():
            missing = [place for place, chunk in enumerate(found) if chunk is None]
            if known is not self.own and missing:
                more = known.find_many([names[place] for place in missing])
                for place, chunk in zip(missing, more, strict=True):
                    found[place] = chunk
        return found

    def packs(self) -> dict[str, int]:
        """Every pack that chunks are in, and its size in bytes."""
        return self._of_all(Known.packs)

    def hashes(self) -> dict[str, str]:
        """Every pack that chunks are in, and the digest in its trailer, hexadecimal."""
        return self._of_all(Known.hashes)

    def key_files(self) -> dict[str, str]:
        """For each run the SHA-256 of its key file as it was when it was known to be good, hexadecimal."""
        return self._of_all(Known.key_files)

    def bases(self) -> dict[str, tuple[str, ...]]:
        """For each pack with differences the packs in which their bases lie."""
        return self._of_all(Known.bases)

    def add(self, keys: RunKeys, table: PackTable, key_file: str) -> None:
        """Remembers, durably, a pack that this host has stored: see `Known.add`."""
        self.own.add(keys, table, key_file)

    def forget_packs(self, names: Collection[str]) -> None:
        """As `Known.forget_packs`; a difference and its base may be of different writers. So what rests on a writer
        that is trusted no more goes as well."""
        rests: dict[str, tuple[str, ...]] = self._of_all(Known.rests)
        gone = resting_on(names, rests)
        for known in self.by_writer.values():
            known.drop(gone)

    def has_looked_at(self, index: str) -> bool:
        """Whether an index object holds nothing new: it was learnt, or is of a writer that is not trusted."""
        if any(index in known.indexes for known in self.by_writer.values() if known is not self.own):
            return True
        writer = self.own.indexes.get(index)
        return writer is not None and (writer not in self.by_writer or self.by_writer[writer] is self.own)

    def _of_all(self, ask: Callable[[Known], dict[str, T]]) -> dict[str, T]:
        found: dict[str, T] = {}
        for known in reversed(self.by_writer.values()):
            found.update(ask(known))
        return found


def learn(
    storage: Storage, memories: Memories, *, repository: str, id_key: bytes, audience: str
) -> tuple[int, list[str]]:
    """Takes from the index objects that were not looked at yet what writers that are believed have stored for the
    same recipients. `audience`: these, as `_writer.audience` names them.

    Returns how many packs were learnt, and warnings: of index objects in a believed writer's name that are not as it
    wrote them, or cannot be read. Raises StorageError.
    """
    learnt = 0
    wrong: list[str] = []
    strangers: dict[str, str] = {}
    ours = repository, audience_digest(audience)
    uprooted = _Uprooted(storage)
    for path in storage.names("index/"):
        index = path.removeprefix("index/")
        try:
            parse_object_name(index)
        except CorruptBackup:
            continue  # parity, or not ours
        if memories.has_looked_at(index):
            continue
        known: Known | None = None
        try:
            with storage.open(path) as source:
                key = claimed_writer(source)
                writer = fingerprint(key) if key else ""
                known = memories.by_writer.get(writer)
                if known is None:
                    strangers[index] = writer
                    continue
                found = checked(source, partial(open_index, source, index, id_key))
            if found is not None and (found.repository, found.audience) == ours:
                there = (uprooted.noted(known, table) for table in found.tables if _is_there(storage, table))
                learnt += known.learn(index, writer, found.key_file, there)
            else:
                known.note({index: writer})
        except FileNotFoundError:
            continue  # `gc` was faster
        except (CorruptBackup, StorageError) as error:
            # What cannot be read at all may be a stranger's. Who trusts nobody else need not know of it.
            if known is not None or len(memories.by_writer) > 1:
                wrong.append(str(error))
    memories.own.note(strangers)
    uprooted.settle(memories)
    if not wrong:
        return learnt, []
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return learnt, [f"{wrong[0]}{more}: damage, or a forgery in a trusted name, and not believed"]


class _Uprooted:
    """Differences that are learnt after `gc` has written their bases to other packs."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._there: dict[str, bool] = {}
        self._waiting: list[tuple[Known, str, list[bytes]]] = []

    def noted(self, known: Known, table: PackTable) -> PackTable:
        rows = [row.tobytes() for row in table.bases]
        if lost := [row for row in rows if not self._is_there(pack_name(row[ID_LENGTH:]))]:
            self._waiting.append((known, table.name, lost))
        return table

    def settle(self, memories: Memories) -> None:
        """Remembers where those bases are by now, as far as that was learnt too."""
        for known, pack, rows in self._waiting:
            moved: dict[str, set[str]] = {}
            for row in rows:
                base = memories.get(row[:ID_LENGTH])
                if base is None or base.is_difference:
                    break  # It is not relied on, then: what rests on nothing is forgotten.
                moved.setdefault(pack_name(row[ID_LENGTH:]), set()).add(base.pack)
            else:
                known.move_bases(moved, {pack})

    def _is_there(self, pack: str) -> bool:
        if pack not in self._there:
            self._there[pack] = not pack or self._storage.exists(pack_path(pack))
        return self._there[pack]


def _is_there(storage: Storage, table: PackTable) -> bool:
    try:
        with storage.open(pack_path(table.name)) as pack:
            return pack.size == table.size
    except FileNotFoundError:
        return False
