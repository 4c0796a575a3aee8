"""`gc`: what no backup needs goes. Packs of which something is needed go after that is written anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from holdfast.clock import Clock
from holdfast.crypto import Identity, X25519Recipient, fingerprint
from holdfast.model import Signature
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._garbage import Garbage
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys, is_for, key_file_digest, write_run_keys
from holdfast.repository.dedup._known import Known
from holdfast.repository.dedup._moved import MAX_PLACES, Moved
from holdfast.repository.dedup._names import parse_object_name
from holdfast.repository.dedup._rewrite import Finished, Rewriter
from holdfast.repository.dedup._sparse import worth_rewriting
from holdfast.repository.dedup._survey import PackUse, Survey
from holdfast.repository.dedup._writer import audience
from holdfast.storage.base import Storage


@dataclass(slots=True)
class Collected:
    """What a `gc` has done."""

    deleted: list[str] = field(default_factory=list)
    """Names."""
    freed_bytes: int = 0
    rewritten: int = 0
    """Packs of which the live chunks are in other ones now."""
    written_bytes: int = 0
    later_bytes: int = 0
    """Of packs that a later call deletes."""
    left: list[str] = field(default_factory=list)
    """Why packs stay that could be written anew."""
    damaged: list[str] = field(default_factory=list)
    """Packs that cannot be written anew because they cannot be read."""


class WriterHere(NamedTuple):
    """Whose packs are written."""

    repository: str
    id_key: bytes
    writer: str
    recipients: tuple[X25519Recipient, ...] | None
    """None where nothing is encrypted."""
    identities: Sequence[Identity]
    known: Known
    sign: Callable[[bytes], Signature]


class _Kind(NamedTuple):
    """Packs that may lie in one."""

    id_key: bytes
    is_own: bool
    """This host remembers to have stored them."""


class Collecting:
    """One call, after all backups were surveyed."""

    def __init__(
        self,
        storage: Storage,
        survey: Survey,
        moved: Moved,
        keys_of: Callable[[str], RunKeys],
        here: Callable[[], WriterHere],
        clock: Clock,
    ) -> None:
        """`here` is asked when something is to be written."""
        self.done = Collected()
        self._storage = storage
        self._survey = survey
        self._moved = moved
        self._keys_of = keys_of
        self._make_here = here
        self._clock = clock
        self._garbage = Garbage(storage, clock)
        self._refs = dict(survey.named)
        self._kinds: dict[str, _Kind | str] = {}

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(self._here.known.packs())

    @cached_property
    def _own_keys(self) -> dict[str, str]:
        return self._here.known.key_files()

    @cached_property
    def _here(self) -> WriterHere:
        return self._make_here()

    def needed(self) -> set[str]:
        """Packs that must stay as they are: all that backups name, but for those of which everything that is needed
        is where their marks say."""
        if self._survey.damaged:
            return set(self._survey.named)
        uses = self._survey.uses
        return {
            name
            for name in self._survey.named
            if self._moved.to(name) is None or (name in uses and uses[name].chunks)
        }

    def free(
        self,
        needed: Collection[str],
        runs: Collection[str],
        at_work: Sequence[datetime],
        key_files: Sequence[str],
    ) -> None:
        """Deletes what was condemned, condemns what nothing needs. See `Garbage.free`."""
        self.done.deleted += self._garbage.free(needed, runs, at_work, key_files)
        self.done.freed_bytes += self._garbage.freed_bytes

    def shorten(self) -> None:
        """Lets marks name where chunks are, and not where they were on the way."""
        for name in self._survey.named:
            to = self._moved.to(name)
            if to is None or all(self._moved.to(place.name) is None for place in to):
                continue
            ends = [end for end in self._moved.reached(to).values() if self._moved.to(end.name) is None]
            if len(ends) <= MAX_PLACES:
                self._moved.put(name, ends)

    def rewrite(self) -> None:
        """Writes anew what is worth it, one kind after the other."""
        if self._survey.damaged:
            self.done.damaged += [f"nothing is written anew: {why}" for why in self._survey.damaged.values()]
            return
        kinds: dict[_Kind, list[PackUse]] = defaultdict(list)
        unfit: dict[str, list[PackUse]] = defaultdict(list)
        for use in self._survey.uses.values():
            if use.chunks:
                kind = self._kind(use.pack.name)
                if isinstance(kind, _Kind):
                    kinds[kind].append(use)
                else:
                    unfit[kind].append(use)
            elif self._moved.to(use.pack.name) is None:
                self._mark(use.pack.name, ())
                self._garbage.condemn(use.pack.name)
        for why, uses in unfit.items():
            if left := worth_rewriting(uses):
                self.done.left.append(f"{len(left)} packs could be written anew, and stay: {why}")
        for kind, uses in kinds.items():
            if chosen := worth_rewriting(uses):
                self._rewrite(kind, chosen)

    def forget_marks(self, named: Collection[PackRef]) -> None:
        """Deletes the marks of packs that no backup names any more. `named`: all that backups do."""
        reached = self._moved.reached(named)
        for name in list(self._moved.names()):
            if name not in reached:
                self._moved.forget(name)

    def count(self) -> None:
        """Counts what is to be deleted later."""
        self.done.later_bytes = self._garbage.condemned_bytes()

    def _rewrite(self, kind: _Kind, uses: Sequence[PackUse]) -> None:
        here = self._here
        keys = RunKeys.generate(
            repository=here.repository, id_key=kind.id_key, writer=here.writer, clock=self._clock
        )
        key_file = write_run_keys(self._storage, keys, here.recipients)
        stays = {use.pack.name for use in self._survey.uses.values() if use.chunks}

        def settle(finished: Finished) -> None:
            for table in finished.tables:
                self._refs[table.name] = PackRef(table.name, table.size, table.hash)
                if kind.is_own:
                    here.known.add(keys, table, key_file)
            gone = {
                pack: {place.name for place in self._moved.to(pack) or ()}
                for pack, places in finished.moved.items()
                if self._mark(pack, places)
            }
            # What stays, and rests on what goes, is remembered to rest on what was written for it.
            stays.difference_update(gone)
            here.known.move_bases(gone, stays)
            for pack in gone:
                self._garbage.condemn(pack)
            self.done.rewritten += len(gone)

        index = IndexWriter(
            self._storage, keys, sign=here.sign, key_file=key_file, audience=audience(here.recipients)
        )
        rewriter = Rewriter(
            self._storage,
            keys,
            index,
            self._keys_of,
            self._survey.live,
            [use.pack for use in self._survey.uses.values() if use.chunks],
            settle,
        )
        try:
            rewriter.run(uses)
        finally:
            rewriter.close()
            here.known.note(dict.fromkeys(index.names, fingerprint(here.writer)))
            self.done.written_bytes += rewriter.stored_bytes
        self.done.damaged += [f"pack {pack} stays: {error}" for pack, error in rewriter.damaged.items()]

    def _mark(self, pack: str, places: Collection[str]) -> bool:
        """Says where everything is now that is needed of a pack. False when it is in too many others."""
        onwards = {place.name for place in self._moved.to(pack) or ()}
        to = sorted(onwards.union(places))
        if len(to) > MAX_PLACES:
            self.done.left.append(f"pack {pack} stays: its chunks would be in {len(to)} packs")
            return False
        self._moved.put(pack, [self._refs[place] for place in to])
        return True

    def _kind(self, pack: str) -> _Kind | str:
        """What a pack may be joined with; or why nobody could say that all who read it could read what is written."""
        run = parse_object_name(pack)[0]
        if run not in self._kinds:
            self._kinds[run] = self._kind_of(run)
        kind = self._kinds[run]
        if isinstance(kind, str):
            return kind
        return kind._replace(is_own=kind.is_own and pack in self._own)

    def _kind_of(self, run: str) -> _Kind | str:
        here = self._here
        encrypted = here.recipients is not None
        digest = key_file_digest(self._storage, run, encrypted=encrypted)
        if not digest:
            return (
                "they are not encrypted, and this host encrypts"
                if encrypted
                else "they are encrypted, and this host does not encrypt"
            )
        if (
            here.recipients is not None
            and self._own_keys.get(run) != digest
            and not is_for(self._storage, run, here.recipients, here.identities)
        ):
            return (
                "they are encrypted to other recipients than this host encrypts to, or nobody here can tell"
            )
        id_key = self._keys_of(run).id_key
        return _Kind(id_key, id_key == here.id_key)
