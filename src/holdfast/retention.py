"""Which backups are kept, and which may go. Pure: nothing is read, and nothing deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

_PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda moment: f"{moment:%Y-%m-%d %H}h",
    "daily": lambda moment: f"{moment:%Y-%m-%d}",
    "weekly": lambda moment: f"{moment:%G-W%V}",
    "monthly": lambda moment: f"{moment:%Y-%m}",
    "yearly": lambda moment: f"{moment:%Y}",
}
"""The period that a moment lies in, in UTC; weeks as ISO 8601 has them."""

KEEP_RULES = ("last", *_PERIODS)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long backups are kept."""

    retention_days: int
    """1 or more. Where there are keep rules, it is for the records of runs that failed alone."""
    keep: Mapping[str, int] = field(default_factory=dict)
    """Keep rules: how many of `KEEP_RULES` to keep. Empty where age alone decides."""
    schedules: Mapping[str, int] | None = field(default_factory=dict)
    """`retention_days` of each schedule that there is, by id: it stands in the place of ours for the backups that
    the schedule has made. None where the schedules are not known: what any has made is kept."""

    def __post_init__(self) -> None:
        """Raises UsageError for what is no policy."""
        for days in (self.retention_days, *(self.schedules or {}).values()):
            if days < 1:
                raise UsageError(f"retention_days is {days}: it must be at least 1")
        for rule, count in self.keep.items():
            if rule not in KEEP_RULES or count < 0:
                raise UsageError(
                    f"{rule} = {count} is no keep rule", hint=f"The rules are {', '.join(KEEP_RULES)}."
                )

    def schedule_of(self, backup: BackupMetadata) -> str | None:
        """The schedule that a backup is kept by; None for one that was made by hand, or whose schedule is gone."""
        known = self.schedules
        return backup.schedule_id if known is None or backup.schedule_id in known else None

    def days(self, backup: BackupMetadata) -> int:
        schedule_id = self.schedule_of(backup)
        if schedule_id is None or self.schedules is None:
            return self.retention_days
        return self.schedules[schedule_id]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a backup, and why."""

    backup: BackupMetadata
    keep: bool
    reason: str
    """A short phrase for a person: ``12 days old, kept for 30``."""


def decide(
    backups: Sequence[BackupMetadata],
    policy: Policy,
    *,
    now: datetime,
    only: str | None = None,
    in_use: Collection[str] = (),
) -> list[Verdict]:
    """A verdict on each backup, in the order given, whatever that is.

    Without keep rules, what is older than the retention allows goes, failed runs included. With keep rules they
    decide alone, and what none of them keeps goes, however young: of the backups of a schedule, and of those made
    by hand, each rule keeps the newest one of each of the last N periods that have any, for each component on its
    own, so that a backup of the configuration never stands in for one of the models.

    It stays in any case when it is pinned, when its id is among those `in_use`, when it is the last good one, full
    one, config or models backup, or the last good one of its schedule, or when a backup that stays rests on it, at
    any depth. `only`: all but the backups of this schedule stay. Where `now` is before the newest backup the clock
    was set back, ages mean nothing, and all stay.
    """
    newest_first = sorted(backups, key=lambda backup: (backup.moment, backup.backup_id), reverse=True)
    if newest_first and now < newest_first[0].moment - _TOLERANCE:
        reason = f"the clock is behind {newest_first[0].backup_id}: nothing is dropped"
        return [Verdict(backup, True, reason) for backup in backups]
    counts = {rule: count for rule, count in policy.keep.items() if count}

    # Rules of what to keep, the first one that speaks of a backup giving the reason.
    kept: dict[str, str] = {}
    for rule in (
        {backup.backup_id: "pinned" for backup in newest_first if backup.pinned},
        {backup.backup_id: "in use" for backup in newest_first if backup.backup_id in in_use},
        _of_others(newest_first, policy, only),
        _kept_by_rules(newest_first, policy, counts) if counts else {},
        _young([backup for backup in newest_first if not (counts and backup.is_good)], now, policy),
        _last_good(newest_first, policy),
    ):
        kept = rule | kept
    kept = _parents(newest_first, kept) | kept

    return [
        Verdict(backup, True, kept[backup.backup_id])
        if backup.backup_id in kept
        else Verdict(backup, False, _why_not(backup, now, policy, counts))
        for backup in backups
    ]


def _of_others(newest_first: Sequence[BackupMetadata], policy: Policy, only: str | None) -> dict[str, str]:
    reasons = {}
    for backup in newest_first:
        if policy.schedules is None and backup.schedule_id is not None:
            reasons[backup.backup_id] = "of a schedule, and the schedules cannot be read"
        elif only is not None and backup.schedule_id != only:
            reasons[backup.backup_id] = f"not of schedule {only}"
    return reasons


def _young(backups: Iterable[BackupMetadata], now: datetime, policy: Policy) -> dict[str, str]:
    return {
        backup.backup_id: f"{_age(backup, now)}, kept for {policy.days(backup)}"
        for backup in backups
        if (now - backup.moment) / _DAY <= policy.days(backup)
    }


def _kept_by_rules(
    newest_first: Sequence[BackupMetadata], policy: Policy, counts: Mapping[str, int]
) -> dict[str, str]:
    """What is kept, by the rule that comes first in `KEEP_RULES`."""
    reasons: dict[str, str] = {}
    good = [backup for backup in newest_first if backup.is_good]
    for rule in (rule for rule in KEEP_RULES if rule in counts):
        periods: dict[tuple[str | None, str], list[str]] = {}
        for backup in good:
            period = _PERIODS[rule](backup.moment) if rule in _PERIODS else backup.backup_id
            for component in backup.components:
                seen = periods.setdefault((policy.schedule_of(backup), component), [])
                if len(seen) < counts[rule] and period not in seen[-1:]:
                    seen.append(period)
                    told = f" ({period})" if rule in _PERIODS else ""
                    reasons.setdefault(backup.backup_id, f"{rule} {len(seen)} of {counts[rule]}{told}")
    return reasons


def _last_good(newest_first: Sequence[BackupMetadata], policy: Policy) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for kinds, what in _LAST_GOOD.items():
        for backup in newest_first:
            if backup.is_good and backup.type in kinds:
                reasons.setdefault(backup.backup_id, what)
                break
    seen = set()
    for backup in newest_first:
        schedule_id = policy.schedule_of(backup)
        if backup.is_good and schedule_id is not None and schedule_id not in seen:
            seen.add(schedule_id)
            reasons.setdefault(backup.backup_id, "last good backup of its schedule")
    return reasons


def _parents(newest_first: Sequence[BackupMetadata], kept: Collection[str]) -> dict[str, str]:
    """All that the kept ones rest on, each with the newest that rests on it directly."""
    by_id = {backup.backup_id: backup for backup in newest_first}
    reasons: dict[str, str] = {}
    children = [backup for backup in newest_first if backup.backup_id in kept]
    for child in children:
        parent = by_id.get(child.rests_on) if child.rests_on is not None else None
        # Each is visited once: metadata that was tampered with may have a backup rest on itself.
        if parent is not None and parent.backup_id not in kept and parent.backup_id not in reasons:
            reasons[parent.backup_id] = f"parent of {child.backup_id}"
            children.append(parent)
    return reasons


def _why_not(backup: BackupMetadata, now: datetime, policy: Policy, counts: Mapping[str, int]) -> str:
    if counts and backup.is_good:
        rules = ", ".join(f"{rule} {counts[rule]}" for rule in KEEP_RULES if rule in counts)
        return f"{_age(backup, now)}, and none of {rules}"
    return f"{_age(backup, now)}, limit {policy.days(backup)}"


def _age(backup: BackupMetadata, now: datetime) -> str:
    days = (now - backup.moment) // _DAY
    if days == 0:
        return "less than a day old"
    return "1 day old" if days == 1 else f"{days} days old"
