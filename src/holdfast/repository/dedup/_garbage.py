"""Packs that no backup needs any more, and how they go without harm to runs at work.

In two phases. A pack that nothing needs is *condemned*: writers see the mark, and take nothing in it for present any
more. It is *deleted* by a later call, once every run that began before the mark has ended, and the grace period is
over: clocks of several hosts differ, and a listing may lag. A pack that is needed again by then is kept, and its mark
goes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from holdfast.clock import Clock, parse_timestamp, timestamp
from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._names import index_path, is_run, object_name, pack_path, parse_object_name
from holdfast.storage.base import Storage

CONDEMNED = "condemned/"
GRACE = timedelta(hours=24)
_LIMIT = 4096


class Garbage:
    """What is in a storage and in no manifest."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self.freed_bytes = 0
        """Of packs that were deleted."""
        self._storage = storage
        self._clock = clock

    def free(
        self,
        needed: Collection[str],
        runs: Collection[str],
        at_work: Sequence[datetime],
        key_files: Sequence[str],
    ) -> list[str]:
        """One call: deletes what was condemned long enough ago, and condemns the rest.

        `needed`: packs that backups need. `runs`: those that made them. `at_work`: when each run that has not ended
        began. `key_files`: those that were there before anybody looked who is at work, for a run that began later may
        have a key and no pack yet. Returns the names of what was deleted.

        Raises StorageError, CorruptBackup for a mark that is damaged.
        """
        now = self._clock()
        packs = set(self._packs())
        marks = dict(self._marks())
        deleted = []
        for pack, since in marks.items():
            if pack in needed or pack not in packs:
                self._storage.delete(CONDEMNED + pack)
            elif since + GRACE <= now and all(since < began for began in at_work):
                self.freed_bytes += self._size(pack)
                self._delete(pack_path(pack))
                self._storage.delete(CONDEMNED + pack)
                packs.discard(pack)
                deleted.append(pack_path(pack))
        for pack in sorted(packs - set(needed) - set(marks)):
            self.condemn(pack)
        # A run that is at work has a key before it has a pack.
        if not at_work:
            left = {parse_object_name(pack)[0] for pack in packs} | set(runs)
            deleted += self._keys_of_nothing(key_files, left)
        return deleted

    def condemn(self, pack: str) -> None:
        """Writers take nothing in the pack for present from now on. Raises StorageError."""
        mark = {"since": timestamp(self._clock())}
        self._storage.put(CONDEMNED + pack, json.dumps(mark).encode())

    def condemned_bytes(self) -> int:
        """How much the packs take that are condemned."""
        return sum(self._size(pack) for pack, _ in self._marks())

    def _size(self, pack: str) -> int:
        try:
            with self._storage.open(pack_path(pack)) as file:
                return file.size
        except FileNotFoundError:
            return 0

    def _packs(self) -> Iterator[str]:
        for prefix in range(256):
            for name in self._storage.names(f"packs/{prefix:02x}/"):
                pack = name.rpartition("/")[2]
                # What is not ours is left alone; parity is deleted with its pack.
                with suppress(CorruptBackup):
                    parse_object_name(pack)
                    yield pack

    def _marks(self) -> Iterator[tuple[str, datetime]]:
        for name in self._storage.names(CONDEMNED):
            pack = name.removeprefix(CONDEMNED)
            parse_object_name(pack)
            try:
                data = json.loads(self._storage.get(name, limit=_LIMIT))
                yield pack, parse_timestamp(data["since"])
            except FileNotFoundError:
                continue  # another `gc` was faster
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptBackup(
                    f"{name} does not say since when", hint="Delete it: the pack is condemned again."
                ) from error

    def _keys_of_nothing(self, key_files: Sequence[str], runs: Collection[str]) -> list[str]:
        """Keys and indexes of runs of which nothing is left."""
        deleted = []
        for name in key_files:
            run, _, suffix = name.removeprefix("keys/").partition(".")
            if suffix not in ("age", "json") or not is_run(run) or run in runs:
                continue
            number = 0
            while self._storage.exists(index := index_path(object_name(run, number))):
                self._delete(index)
                deleted.append(index)
                number += 1
            self._delete(name)
            deleted.append(name)
        return deleted

    def _delete(self, name: str) -> None:
        self._storage.delete(name)
        self._storage.delete(f"{name}.parity")
