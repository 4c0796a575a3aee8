"""Where packs have gone that manifests name: what `gc` leaves behind when it writes their live chunks anew.

A manifest is written once, and names the pack of each chunk. So a pack that goes leaves an object ``moved/<pack>``,
which names the packs that have what anybody still needs of it, and those in which the bases of differences in these
lie. Nothing of it is believed: packs are sealed, and every chunk is compared with its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import PackRef, packs_lines, parse_packs
from holdfast.repository.dedup._names import pack_path, parse_object_name
from holdfast.storage.base import Storage

MOVED = "moved/"
MAX_PLACES = 1024
"""Packs that a mark may name. The chunks of a pack go to one or two, as a rule."""
_LIMIT = 256 << 10
"""Bytes of a mark."""
_FOLLOWED = 1 << 16
"""Marks that are followed from one pack. `gc` shortens what leads over several."""


class Moved:
    """The marks in a storage, each read once."""

    def __init__(self, storage: Storage, *, listed: bool = False) -> None:
        """`listed`: whoever asks for the marks of many packs, of which few have one, has them listed first."""
        self._storage = storage
        self._marked = set(self.names()) if listed else None
        self._read: dict[str, tuple[PackRef, ...] | None] = {}
        self._listed: dict[str, set[str]] = {}

    def names(self) -> Iterator[str]:
        """Every pack that has a mark."""
        for name in self._storage.names(MOVED):
            pack = name.removeprefix(MOVED)
            with suppress(CorruptBackup):  # What is not ours is left alone.
                parse_object_name(pack)
                yield pack

    def to(self, pack: str) -> tuple[PackRef, ...] | None:
        """What a pack's mark names; None where there is none. Raises CorruptBackup for one that is damaged."""
        if self._marked is not None and pack not in self._marked:
            return None
        if pack not in self._read:
            parse_object_name(pack)
            try:
                text = self._storage.get(MOVED + pack, limit=_LIMIT)
            except FileNotFoundError:
                self._read[pack] = None
            else:
                self._read[pack] = _parse(text, pack)
        return self._read[pack]

    def put(self, pack: str, places: Sequence[PackRef]) -> None:
        """Says, durably, where a pack's chunks are. Raises StorageError."""
        lines = {"to": [list(place) for place in places]}
        self._storage.put(MOVED + pack, json.dumps(lines, separators=(",", ":")).encode())
        self._read[pack] = tuple(places)
        if self._marked is not None:
            self._marked.add(pack)

    def forget(self, pack: str) -> None:
        """Deletes a mark."""
        self._storage.delete(MOVED + pack)
        self._read.pop(pack, None)

    def places(self, pack: PackRef) -> list[PackRef]:
        """The packs that have what one had: itself where it is there, else those that marks lead to.

        Raises CorruptBackup where that ends in a pack that is not there and has no mark.
        """
        found: dict[str, PackRef] = {}
        done: set[str] = set()
        waiting = [pack]
        while waiting:
            place = waiting.pop()
            # Two packs with bases of differences in each other may lead to each other, and elsewhere besides.
            if place.name in done:
                continue
            done.add(place.name)
            if self.is_there(place.name):
                found[place.name] = place
                continue
            onwards = self.to(place.name)
            if onwards is None:
                raise missing_pack(place.name, pack.name)
            waiting += onwards
            if len(done) > _FOLLOWED:
                raise CorruptBackup(f"{MOVED}{pack.name} leads on and on")
        return list(found.values())

    def reached(self, packs: Iterable[PackRef]) -> dict[str, PackRef]:
        """Packs, and all that marks lead to from them, whether they are there or not."""
        found: dict[str, PackRef] = {}
        waiting = list(packs)
        while waiting:
            place = waiting.pop()
            if place.name not in found:
                found[place.name] = place
                waiting += self.to(place.name) or ()
        return found

    def is_there(self, pack: str) -> bool:
        """Whether a pack is, as listed when one of its like was asked for first."""
        prefix = pack[:2]
        if prefix not in self._listed:
            folder = pack_path(pack).rpartition("/")[0]
            self._listed[prefix] = {name.rpartition("/")[2] for name in self._storage.names(f"{folder}/")}
        return pack in self._listed[prefix]


def missing_pack(pack: str, who: str) -> CorruptBackup:
    """The error for a pack that is not there. `who` needs it: a backup, or a pack that it has come from."""
    return CorruptBackup(
        f"pack {pack} is missing, which {who} needs",
        hint="Put it back from a copy. Other backups may be whole: `holdfast verify --all` shows which.",
    )


def _parse(text: bytes, pack: str) -> tuple[PackRef, ...]:
    try:
        data: Any = json.loads(text)
        places = data["to"]
        if not isinstance(places, list) or len(places) > MAX_PLACES:
            raise ValueError
        (line,) = packs_lines(places) if places else (b'{"packs":[]}',)
        found = parse_packs(line) or []
        if any(not place.hash for place in found):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError, CorruptBackup):
        raise CorruptBackup(
            f"{MOVED}{pack} does not say where the chunks of that pack are",
            hint="Put it back from a copy; if the pack is there, delete the mark.",
        ) from None
    return tuple(found)
