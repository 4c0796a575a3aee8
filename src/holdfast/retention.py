"""Which backups are kept, and which may go. Pure: nothing is read, and nothing deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.errors import UsageError
from holdfast.model import BackupMetadata, BackupType

_DAY = timedelta(days=1)
_TOLERANCE = timedelta(minutes=1)
"""Backups made within one second get the ids of the seconds that follow."""

_LAST_GOOD: dict[tuple[BackupType, ...], str] = {
    ("full",): "last good full backup",
    ("full", "incremental"): "last good backup",
    ("config",): "last good config backup",
    ("models",): "last good models backup",
}
"""Of each of these the last good one stays, however old: it may be the last one there will ever be."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a backup, and why."""

    backup: BackupMetadata
    keep: bool
    reason: str
    """A short phrase for a person: ``12 days old, kept for 30``."""


def decide(
    backups: Sequence[BackupMetadata], *, now: datetime, retention_days: int, in_use: Collection[str] = ()
) -> list[Verdict]:
    """A verdict on each backup, in the order given, whatever that is.

    What is older than `retention_days` goes, failed runs included. It stays when it is pinned, when its id is
    among those `in_use`, when it is the last good one, full one, config or models backup, or when a backup that
    stays rests on it, at any depth. Where `now` is before the newest backup the clock was set back, ages mean
    nothing, and all stay.

    Raises UsageError when `retention_days` is below 1.
    """
    if retention_days < 1:
        raise UsageError(f"retention_days is {retention_days}: it must be at least 1")
    newest_first = sorted(backups, key=lambda backup: (backup.moment, backup.backup_id), reverse=True)
    if newest_first and now < newest_first[0].moment - _TOLERANCE:
        reason = f"the clock is behind {newest_first[0].backup_id}: nothing is dropped"
        return [Verdict(backup, True, reason) for backup in backups]

    # Rules of what to keep, the first one that speaks of a backup giving the reason.
    kept: dict[str, str] = {}
    for rule in (
        {backup.backup_id: "pinned" for backup in newest_first if backup.pinned},
        {backup.backup_id: "in use" for backup in newest_first if backup.backup_id in in_use},
        _young(newest_first, now, retention_days),
        _last_good(newest_first),
    ):
        kept = rule | kept
    kept = _parents(newest_first, kept) | kept

    return [
        Verdict(backup, True, kept[backup.backup_id])
        if backup.backup_id in kept
        else Verdict(backup, False, f"{_age(backup, now)}, limit {retention_days}")
        for backup in backups
    ]


def _young(backups: Iterable[BackupMetadata], now: datetime, days: int) -> dict[str, str]:
    return {
        backup.backup_id: f"{_age(backup, now)}, kept for {days}"
        for backup in backups
        if (now - backup.moment) / _DAY <= days
    }


def _last_good(newest_first: Sequence[BackupMetadata]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for kinds, what in _LAST_GOOD.items():
        for backup in newest_first:
            if backup.is_good and backup.type in kinds:
                reasons.setdefault(backup.backup_id, what)
                break
    return reasons


def _parents(newest_first: Sequence[BackupMetadata], kept: Collection[str]) -> dict[str, str]:
    """All that the kept ones rest on, each with the newest that rests on it directly."""
    by_id = {backup.backup_id: backup for backup in newest_first}
    reasons: dict[str, str] = {}
    children = [backup for backup in newest_first if backup.backup_id in kept]
    for child in children:
        parent = by_id.get(child.parent) if child.parent is not None else None
        # Each is visited once: metadata that was tampered with may have a backup rest on itself.
        if parent is not None and parent.backup_id not in kept and parent.backup_id not in reasons:
            reasons[parent.backup_id] = f"parent of {child.backup_id}"
            children.append(parent)
    return reasons


def _age(backup: BackupMetadata, now: datetime) -> str:
    days = (now - backup.moment) // _DAY
    if days == 0:
        return "less than a day old"
    return "1 day old" if days == 1 else f"{days} days old"
