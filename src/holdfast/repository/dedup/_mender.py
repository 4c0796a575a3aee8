"""Writes damaged objects anew, as their parity mends them, and parity that is damaged or missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from holdfast.durable import explained
from holdfast.errors import CorruptBackup, CredentialError, RepositoryError
from holdfast.model import is_backup_id
from holdfast.repository import _names as names
from holdfast.repository._parity import examine, repair, write_parity
from holdfast.repository._parity_storage import parity_name
from holdfast.repository.dedup._key_file import IDENTITY
from holdfast.repository.dedup._names import is_object_name, is_run
from holdfast.repository.dedup._writer import MARK
from holdfast.storage.base import Storage
from holdfast.streams import RandomAccess

Check = Callable[[str, RandomAccess], None]
"""Raises for an object of that name that is not what was stored."""

_REFUSALS = (CorruptBackup, CredentialError, RepositoryError)


class Mending(NamedTuple):
    """What became of an object that was not as it should be."""

    told: str
    is_done: bool
    """Whether all is well now."""


class Mender:
    """The objects of a repository, one after the other."""

    def __init__(self, storage: Storage, check: Check, *, gives_parity: bool) -> None:
        """`storage`: as it lies there, not as it is read mended. `gives_parity`: whether every object is to have
        some."""
        self._storage = storage
        self._check = check
        self._gives_parity = gives_parity

    def run(self, at_work: Callable[[str], bool]) -> Iterator[Mending]:
        """Goes through all of them; tells of those that were not as they should be. `at_work`: whether a metadata
        file is of a run that has not ended, which will replace it."""
        for name, has_parity in self._objects():
            if not (has_parity or self._gives_parity) or at_work(name):
                continue
            try:
                told = self._mend(name)
            except FileNotFoundError:
                continue  # It was deleted meanwhile.
            except _REFUSALS as error:
                yield Mending(str(error) if name in str(error) else f"{name}: {error}", False)
                continue
            if told:
                yield Mending(f"{name}: {told}", True)

    def _objects(self) -> Iterator[tuple[str, bool]]:
        """Every object, and whether it has parity. What others are proved with comes first."""
        directories = names.DIRECTORIES.values()
        packs = (f"packs/{first:02x}/" for first in range(256))
        yield MARK, self._storage.exists(parity_name(MARK))
        for prefix in ("keys/", *directories, *packs, "index/"):
            found = set(self._storage.names(prefix))
            for name in sorted(found, key=lambda name: (not name.endswith(".json"), name)):
                if _is_ours(name):
                    yield name, parity_name(name) in found

    def _mend(self, name: str) -> str:
        """Says what was done; nothing where there was nothing to do."""
        condition = examine(self._storage, name)
        if condition is None:
            self._prove(name)
            write_parity(self._storage, name)
            return "had no parity, and has now"
        if not condition.damage and not condition.spoilt:
            return ""
        # JSON may say something else in each bit: there parity decides, as in reading.
        if not (condition.damage and name.endswith(".json")):
            try:
                self._prove(name)
            except _REFUSALS as error:
                if not condition.damage:
                    raise CorruptBackup(
                        f"its parity is damaged, and it is not proved here: {error}"
                    ) from error
            else:
                write_parity(self._storage, name)
                return f"its parity did not fit, and is made anew ({condition.spoilt or condition.damage})"
        if repair(self._storage, name, lambda source: self._check(name, source)) is None:
            return ""  # It was replaced meanwhile.
        if condition.spoilt:
            write_parity(self._storage, name)
        return f"mended ({condition.damage})"

    def _prove(self, name: str) -> None:
        with self._storage.open(name) as source, explained(f"cannot read {name}"):
            self._check(name, source)


def _is_ours(name: str) -> bool:
    """Whether a name is one that a run gives. What else lies there is left alone."""
    directory, _, last = name.rpartition("/")
    if directory == "keys":
        run, _, suffix = last.partition(".")
        return name == IDENTITY or (suffix in ("age", "json") and is_run(run))
    if directory in ("index", f"packs/{last[:2]}"):
        return is_object_name(last)
    return names.manifest_id(name) is not None or is_backup_id(names.id_of_metadata(name) or "")
