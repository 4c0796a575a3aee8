"""The engine: begins, applies, commits, recovers, takes back."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from holdfast.clock import Clock, parse_timestamp, timestamp
from holdfast.errors import HoldfastError, Interrupted, JournalRefused, LockHeld, NothingToUndo, RestoreError
from holdfast.transaction._journal import Journal, Phase, Record
from holdfast.transaction._places import place_name, remove_place, restoring
from holdfast.transaction._protocol import Swap

KEEP_FOR = timedelta(days=7)
"""For so long a restore can be taken back."""
REHEARSAL = "drill"
"""The verb of a transaction that stages, and never applies anything."""


class SwapKind(Protocol):
    """A class of swaps."""

    def from_journal(self, state: dict[str, Any], /) -> Swap:
        """The inverse of `Swap.to_journal`. Believes nothing: raises KeyError, TypeError, ValueError."""
        ...


Kinds = Mapping[str, SwapKind]
"""The classes of swaps by their `Swap.kind`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A restore (or an undo) that could be taken back."""

    verb: str
    subject: str
    moment: datetime
    """When it was committed, UTC."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was put right."""

    message: str
    """What happened, in a sentence or two; empty when there are only warnings."""
    warnings: tuple[str, ...] = ()
    """Left-overs that could not be removed. They do no harm, and every later `recover` tries again."""


class Transaction:
    """A restore, or an undo, under way.

    ::

        with Transaction.begin(state_dir, kinds, verb="restore", subject=backup_id, clock=clock) as transaction:
            swaps = target.stage(entries, read, transaction, emit)
            transaction.apply(swaps)

    Leaving the block uncommitted, by an error, an interrupt, or without `apply`, takes everything back.
    """

    def __init__(self, journal: Journal, kinds: Kinds, record: Record, clock: Clock) -> None:
        self._journal = journal
        self._kinds = kinds
        self._record = record
        self._clock = clock

    @property
    def run(self) -> str:
        """16 hex digits that no other restore has."""
        return self._record.run

    @classmethod
    @contextmanager
    def begin(
        cls, state_dir: Path, kinds: Kinds, *, verb: str, subject: str, clock: Clock
    ) -> Iterator[Transaction]:
        """Opens a transaction; first recovers what a crashed one left.

        `state_dir`: a private directory of the service, made (0700) where there is none. Raises LockHeld,
        JournalRefused, RestoreError, StorageError.
        """
        with Journal.locked(state_dir) as journal:
            _resolve(journal, kinds)
            record = Record(secrets.token_hex(8), verb, subject, timestamp(clock()), Phase.STAGING)
            with _finished(journal, kinds):
                journal.records.append(record)
                journal.write()
                yield cls(journal, kinds, record, clock)

    def place(self, beside: Path) -> Path:
        """Makes a private directory (0700) in the directory `beside`; see `holdfast.sources.base.Staging`.

        Raises RestoreError, NoSpace.
        """
        record = self._record
        path = Path(os.path.realpath(beside), place_name(record.run, len(record.places)))
        record.places.append(str(path))
        self._journal.write()
        with restoring(f"cannot write to {path.parent}"):
            path.mkdir(mode=0o700)
        return path

    def register(self, swap: Swap) -> None:
        """Notes a swap before what it stages is made; see `holdfast.sources.base.Staging`. Raises StorageError."""
        self._check_known([swap])
        self._record.swaps.append(_described(swap))
        self._journal.write()

    def apply(self, swaps: Sequence[Swap]) -> tuple[str, ...]:
        """Replaces what is live by what is staged, and commits. Once only.

        Returns what could not be cleaned up after that: warnings, because the restore is done. Raises what the
        swaps raise, and StorageError; then nothing is replaced once the block is left.
        """
        journal, record = self._journal, self._record
        if record.verb == REHEARSAL:
            raise ValueError("a rehearsal replaces nothing")
        self._check_known(swaps)
        record.swaps = [_described(swap) for swap in swaps]
        record.phase = Phase.APPLYING
        journal.write()
        for swap in swaps:
            swap.apply()
        for previous in journal.in_phase(Phase.KEPT):
            journal.release(previous)
        record.phase = Phase.COMMITTED
        record.moment = timestamp(self._clock())
        journal.write()
        try:
            return _resolve(journal, self._kinds).warnings
        except (KeyboardInterrupt, Interrupted):
            # It must not be told as a failed restore, after which the data is as before.
            return (f"the {_name(record)} is done; the next command goes on with cleaning up after it",)

    def _check_known(self, swaps: Sequence[Swap]) -> None:
        if unknown := {swap.kind for swap in swaps} - set(self._kinds):
            raise ValueError(f"{', '.join(unknown)}: no `recover` would know how to take that back")


def recover(state_dir: Path, kinds: Kinds, now: datetime) -> Recovery | None:
    """Puts right what a crash left: takes back what was not committed, finishes what was. Deletes a kept state
    older than `KEEP_FOR`. Every command calls it first; None when there was nothing to do.

    Raises LockHeld while a restore is under way, JournalRefused, RestoreError when something cannot be put back
    now, StorageError. A rehearsal under way is no reason to wait: it touches nothing live.
    """
    if not _is_due(Journal(state_dir), now):
        return None
    with ExitStack() as stack:
        try:
            journal = stack.enter_context(Journal.locked(state_dir))
        except LockHeld:
            if _is_rehearsed(Journal(state_dir)):
                return None
            raise
        messages = []
        for record in _expired(journal, now):
            messages.append(
                f"What the {_name(record)} had replaced is more than {KEEP_FOR.days} days old: deleted."
            )
            journal.release(record)
            journal.write()
        recovery = _resolve(journal, kinds)
    messages += [recovery.message] if recovery.message else []
    return Recovery(" ".join(messages), recovery.warnings)


def kept(state_dir: Path) -> Kept | None:
    """What `undo` would take back. Raises JournalRefused."""
    record = Journal(state_dir).kept
    return None if record is None else _kept(record)


def undo(state_dir: Path, kinds: Kinds, clock: Clock) -> Kept:
    """Takes the last restore back, as a transaction of its own, which the next `undo` takes back in turn.

    Returns what was taken back. Raises NothingToUndo, LockHeld, JournalRefused, StorageError, and what the swaps
    raise; then all is as it was.
    """
    with Journal.locked(state_dir) as journal:
        _resolve(journal, kinds)
        previous = _kept_record(journal)
        taken_back = _kept(previous)
        swaps = [swap.reversed() for swap in reversed(_revive(journal, previous, kinds))]
        record = Record(
            previous.run, "undo", previous.subject, timestamp(clock()), Phase.STAGING, previous.places
        )
        with _finished(journal, kinds):
            journal.records.append(record)
            Transaction(journal, kinds, record, clock).apply(swaps)
    return taken_back


def discard(state_dir: Path, kinds: Kinds) -> Recovery:
    """Deletes the kept state: the last restore cannot be taken back any more.

    Raises NothingToUndo, LockHeld, JournalRefused, StorageError.
    """
    with Journal.locked(state_dir) as journal:
        _resolve(journal, kinds)
        journal.release(_kept_record(journal))
        journal.write()
        return _resolve(journal, kinds)


@contextmanager
def _finished(journal: Journal, kinds: Kinds) -> Iterator[None]:
    """Leaves nothing half done, whatever becomes of the block. What is on disk decides, as after a crash."""
    try:
        yield
    except BaseException as error:
        try:
            journal.reload()
            _resolve(journal, kinds)
        except (HoldfastError, OSError) as second:
            raise RestoreError(
                f"{error}; and what had been replaced could not be put back: {second}",
                hint="Put right what the second error names, then run `holdfast recover`.",
            ) from error
        raise
    journal.reload()
    if journal.in_phase(Phase.STAGING, Phase.APPLYING):
        _resolve(journal, kinds)


def _resolve(journal: Journal, kinds: Kinds) -> Recovery:
    """Moves every record on until it is kept or gone."""
    messages: list[str] = []
    warnings: list[str] = []
    left_over = journal.in_phase(Phase.DISCARDING)
    for record in journal.in_phase(Phase.STAGING, Phase.APPLYING):
        messages.append(f"The {_name(record)} was cut short {_CUT_SHORT[record.phase]}.")
        if record.phase is Phase.APPLYING:
            swaps = _revive(journal, record, kinds)
            try:
                _revert(swaps)
            except (HoldfastError, OSError) as error:
                if isinstance(error, Interrupted):
                    raise
                raise RestoreError(
                    f"the {_name(record)} was cut short, and cannot be taken back now: {error}",
                    hint=getattr(error, "hint", "")
                    or "Put right what is wrong, then run `holdfast recover`.",
                ) from error
        journal.release(record)
        # Where nothing was applied, this need not be durable before the deletion begins; on a disk that the
        # staging has filled, it could not be.
        if record.swaps:
            journal.write()
    for record in journal.in_phase(Phase.COMMITTED):
        with _as_warning(warnings):
            for swap in _revive(journal, record, kinds):
                swap.settle()
            record.phase = Phase.KEPT
            journal.write()
            messages.append(f"The {_name(record)} had been done, and is now cleaned up after.")
    for record in journal.in_phase(Phase.DISCARDING):
        with _as_warning(warnings):
            for swap in _revive(journal, record, kinds):
                swap.discard()
            for place in record.places:
                remove_place(Path(place))
            journal.records.remove(record)
            journal.write()
            if record in left_over:
                messages.append(f"What was left of the {_name(record)} is removed.")
    return Recovery(" ".join(messages), tuple(warnings))


_CUT_SHORT = {
    Phase.STAGING: "before it replaced anything; what it had staged is removed",
    Phase.APPLYING: "while it replaced data; everything is back as it was before",
}


def _revert(swaps: list[Swap]) -> None:
    # One swap's place may lie in what another one moved: then it can be reverted only after that one.
    waiting = swaps[::-1]
    while waiting:
        failed = []
        for swap in waiting:
            try:
                swap.revert()
            except (HoldfastError, OSError) as error:
                failed.append((swap, error))
        if len(failed) == len(waiting):
            raise failed[0][1]
        waiting = [swap for swap, _ in failed]


@contextmanager
def _as_warning(warnings: list[str]) -> Iterator[None]:
    # What cannot be cleaned up must not keep the next backup from being made.
    try:
        yield
    except Interrupted:
        raise
    except (HoldfastError, OSError) as error:
        warnings.append(f"what a restore left could not be removed: {error}")


def _revive(journal: Journal, record: Record, kinds: Kinds) -> list[Swap]:
    try:
        return [kinds[item["kind"]].from_journal(item["state"]) for item in record.swaps]
    except (KeyError, TypeError, ValueError) as error:
        raise JournalRefused(
            f"{journal.path} holds a step that this version does not know: {error}",
            hint="If a newer Holdfast wrote it, use that one. Else find out who wrote to it.",
        ) from error


def _is_due(journal: Journal, now: datetime) -> bool:
    return bool(_expired(journal, now)) or any(record.phase != Phase.KEPT for record in journal.records)


def _is_rehearsed(journal: Journal) -> bool:
    """Whether what is under way is a rehearsal, and nothing else is."""
    return {record.verb for record in journal.records if record.phase != Phase.KEPT} == {REHEARSAL}


def _expired(journal: Journal, now: datetime) -> list[Record]:
    return [
        record for record in journal.in_phase(Phase.KEPT) if now - parse_timestamp(record.moment) > KEEP_FOR
    ]


def _kept_record(journal: Journal) -> Record:
    record = journal.kept
    if record is None:
        raise NothingToUndo(
            "there is no restore that could be taken back",
            hint=f"A restore can be taken back until the next one, for {KEEP_FOR.days} days at most.",
        )
    return record


def _kept(record: Record) -> Kept:
    return Kept(record.verb, record.subject, parse_timestamp(record.moment))


def _described(swap: Swap) -> dict[str, Any]:
    return {"kind": swap.kind, "state": swap.to_journal()}


def _name(record: Record) -> str:
    return f"{record.verb} of {record.subject}"
