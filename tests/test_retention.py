from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.clock import timestamp
from holdfast.errors import UsageError
from holdfast.model import BackupMetadata, BackupType, Component, make_backup_id
from holdfast.retention import KEEP_RULES, Policy, Verdict, decide

NOW = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)


def backup(
    kind: BackupType,
    age: timedelta,
    *,
    parent: BackupMetadata | str | None = None,
    status: str = "success",
    pinned: bool = False,
    schedule: str | None = None,
    components: tuple[Component, ...] = ("config",),
) -> BackupMetadata:
    moment = NOW - age
    return BackupMetadata(
        backup_id=make_backup_id(kind, moment),
        timestamp=timestamp(moment),
        version="1.0.0",
        type=kind,
        size_bytes=1,
        checksum="",
        components=components,
        status=status,
        parent=parent.backup_id if isinstance(parent, BackupMetadata) else parent,
        pinned=pinned,
        schedule_id=schedule,
    )


def days(number: float) -> timedelta:
    return timedelta(days=number)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def verdicts(
    *backups: BackupMetadata,
    now: datetime = NOW,
    in_use: Sequence[str] = (),
    keep: dict[str, int] | None = None,
    schedules: dict[str, int] | None = None,
    only: str | None = None,
) -> list[tuple[bool, str]]:
    policy = Policy(30, keep or {}, schedules or {})
    return [(v.keep, v.reason) for v in decide(backups, policy, now=now, in_use=in_use, only=only)]


def test_the_old_go_and_the_young_stay_in_the_order_given() -> None:
    assert verdicts(
        backup("full", days(45)),
        backup("full", days(12)),
        backup("full", days(1.5)),
        backup("full", days(0.5)),
        backup("full", days(31)),
    ) == [
        (False, "45 days old, limit 30"),
        (True, "12 days old, kept for 30"),
        (True, "1 day old, kept for 30"),
        (True, "less than a day old, kept for 30"),
        (False, "31 days old, limit 30"),
    ]


def test_a_backup_is_kept_until_the_last_second_of_its_time() -> None:
    recent = backup("full", days(0))
    assert verdicts(backup("full", days(30)), recent)[0][0]
    assert not verdicts(backup("full", days(30) + timedelta(seconds=1)), recent)[0][0]


def test_pinned_and_used_ones_stay() -> None:
    used = backup("models", days(90))
    assert verdicts(
        backup("full", days(80), pinned=True), used, backup("full", days(1)), in_use=[used.backup_id]
    ) == [(True, "pinned"), (True, "in use"), (True, "1 day old, kept for 30")]


def test_what_a_kept_backup_rests_on_stays_at_any_depth() -> None:
    full = backup("full", days(50))
    middle = backup("incremental", days(40), parent=full)
    other = backup("incremental", days(39), parent=full)
    young = backup("incremental", days(5), parent=middle)
    assert verdicts(full, middle, other, young, backup("full", days(1))) == [
        (True, f"parent of {middle.backup_id}"),
        (True, f"parent of {young.backup_id}"),
        (False, "39 days old, limit 30"),
        (True, "5 days old, kept for 30"),
        (True, "1 day old, kept for 30"),
    ]


def test_the_last_good_full_config_and_models_backups_stay_however_old() -> None:
    assert verdicts(
        backup("full", days(400)),
        backup("full", days(300)),
        backup("full", days(200), status="failed"),
        backup("config", days(300)),
        backup("models", days(300)),
        backup("models", days(301)),
    ) == [
        (False, "400 days old, limit 30"),
        (True, "last good full backup"),
        (False, "200 days old, limit 30"),
        (True, "last good config backup"),
        (True, "last good models backup"),
        (False, "301 days old, limit 30"),
    ]


def test_when_the_clock_was_set_back_nothing_goes() -> None:
    newest = backup("full", days(-1))
    reason = f"the clock is behind {newest.backup_id}: nothing is dropped"
    assert (
        verdicts(backup("full", days(400)), newest, backup("full", days(99), status="failed"))
        == [(True, reason)] * 3
    )


def test_backups_that_rest_on_each_other_or_on_nothing_do_no_harm() -> None:
    first, second = backup("incremental", days(90)), backup("incremental", days(80))
    lost = backup("incremental", days(1), parent="full_20000101_000000")
    circle = [
        backup("incremental", days(90), parent=second),
        backup("incremental", days(80), parent=first, pinned=True),
    ]
    assert [keep for keep, _ in verdicts(*circle, lost)] == [True, True, True]


def test_no_backups_are_no_verdicts() -> None:
    assert decide([], Policy(1), now=NOW) == []


def test_a_retention_that_is_no_retention_is_refused() -> None:
    with pytest.raises(UsageError, match="retention_days is 0"):
        Policy(0)
    with pytest.raises(UsageError, match="retention_days is -1"):
        Policy(1, {}, {"nightly": -1})


@pytest.mark.parametrize("keep", [{"fortnightly": 1}, {"daily": -1}])
def test_a_keep_rule_that_is_none_is_refused(keep: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(keep))} = .* is no keep rule"):
        Policy(1, keep)


# Schedules


def test_what_a_schedule_has_made_is_kept_for_its_own_days() -> None:
    assert verdicts(
        backup("full", days(41), schedule="monthly"),
        backup("full", days(40)),
        backup("full", days(9), schedule="nightly"),
        backup("full", days(6), schedule="nightly"),
        backup("full", days(8)),
        schedules={"nightly": 7, "monthly": 365},
    ) == [
        (True, "41 days old, kept for 365"),
        (False, "40 days old, limit 30"),
        (False, "9 days old, limit 7"),
        (True, "6 days old, kept for 7"),
        (True, "8 days old, kept for 30"),
    ]


def test_what_a_schedule_has_made_that_is_gone_is_kept_as_if_made_by_hand() -> None:
    assert verdicts(
        backup("full", days(40), schedule="removed"),
        backup("full", days(20), schedule="removed"),
        schedules={"nightly": 7},
    ) == [(False, "40 days old, limit 30"), (True, "20 days old, kept for 30")]


def test_the_retention_of_one_schedule_touches_no_other_backup() -> None:
    assert verdicts(
        backup("full", days(90)),
        backup("full", days(80), schedule="weekly"),
        backup("full", days(70), schedule="nightly"),
        backup("full", days(1), schedule="nightly"),
        schedules={"nightly": 7, "weekly": 7},
        only="nightly",
    ) == [
        (True, "not of schedule nightly"),
        (True, "not of schedule nightly"),
        (False, "70 days old, limit 7"),
        (True, "1 day old, kept for 7"),
    ]


def test_the_last_good_backup_of_each_schedule_stays_however_old() -> None:
    assert verdicts(
        backup("full", days(90), schedule="nightly"),
        backup("full", days(80), schedule="nightly"),
        backup("full", days(70), schedule="nightly", status="failed"),
        backup("full", days(1)),
        schedules={"nightly": 7},
    ) == [
        (False, "90 days old, limit 7"),
        (True, "last good backup of its schedule"),
        (False, "70 days old, limit 7"),
        (True, "1 day old, kept for 30"),
    ]


def test_where_the_schedules_are_not_known_what_they_have_made_stays() -> None:
    made = [backup("full", days(91), schedule="nightly"), backup("full", days(90)), backup("full", days(1))]
    policy = Policy(30, {}, None)
    assert [(v.keep, v.reason) for v in decide(made, policy, now=NOW)] == [
        (True, "of a schedule, and the schedules cannot be read"),
        (False, "90 days old, limit 30"),
        (True, "1 day old, kept for 30"),
    ]


# Keep rules


def test_keep_rules_keep_the_newest_of_each_of_the_last_periods_that_have_any() -> None:
    # NOW is two o'clock: these are of June 1, 1, May 31, 31, 30, 30, 28, 28 and of April.
    ages = (0.5, 1.5, 3, 20, 27, 30, 90, 95, 24 * 40)
    made = [backup("full", hours(age)) for age in ages]
    dropped = "none of last 1, daily 4"
    assert verdicts(*made, keep={"last": 1, "daily": 4}) == [
        (True, "last 1 of 1"),
        (False, f"less than a day old, and {dropped}"),
        (True, "daily 2 of 4 (2024-05-31)"),
        (False, f"less than a day old, and {dropped}"),
        (True, "daily 3 of 4 (2024-05-30)"),
        (False, f"1 day old, and {dropped}"),
        # The 29th has none: the 28th is the fourth day that has.
        (True, "daily 4 of 4 (2024-05-28)"),
        (False, f"3 days old, and {dropped}"),
        (False, f"40 days old, and {dropped}"),
    ]


def test_each_rule_has_its_period() -> None:
    for rule, step in (
        ("hourly", 1),
        ("daily", 24),
        ("weekly", 24 * 7),
        ("monthly", 24 * 31),
        ("yearly", 24 * 366),
    ):
        made = [backup("full", hours(step * place)) for place in range(5)]
        kept = [keep for keep, _ in verdicts(*made, keep={rule: 3})]
        assert kept == [True, True, True, False, False], rule


def test_weeks_begin_on_monday_also_across_the_turn_of_a_year() -> None:
    monday = datetime(2024, 12, 30, 12, tzinfo=UTC)
    made = [backup("full", NOW - (monday + days(place))) for place in (-1, 0, 2, 6, 7)]
    now = monday + days(8)
    assert [keep for keep, _ in verdicts(*made, now=now, keep={"weekly": 9})] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_with_keep_rules_age_decides_about_failed_runs_alone() -> None:
    assert verdicts(
        backup("full", days(0)),
        backup("full", days(1), status="failed"),
        backup("full", days(40), status="failed"),
        backup("full", days(400)),
        keep={"last": 2},
    ) == [
        (True, "last 1 of 2"),
        (True, "1 day old, kept for 30"),
        (False, "40 days old, limit 30"),
        (True, "last 2 of 2"),
    ]


def test_a_rule_of_none_is_no_rule() -> None:
    assert verdicts(backup("full", days(1)), backup("full", days(0)), keep={"daily": 0}) == [
        (True, "1 day old, kept for 30"),
        (True, "less than a day old, kept for 30"),
    ]


def test_keep_rules_count_for_each_schedule_and_for_what_was_made_by_hand() -> None:
    made = [
        backup("full", hours(age), schedule=schedule)
        for age, schedule in ((0, None), (1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "gone"), (6, None))
    ]
    kept = [keep for keep, _ in verdicts(*made, keep={"last": 1}, schedules={"a": 1, "b": 1})]
    assert kept == [True, True, False, True, False, False, False]


def test_keep_rules_count_for_each_component_so_a_part_never_stands_for_the_whole() -> None:
    whole: tuple[Component, ...] = ("database", "models", "config")
    assert verdicts(
        backup("full", hours(0), components=("database",)),
        backup("full", hours(1), components=whole),
        backup("full", hours(2), components=whole),
        keep={"daily": 1},
    ) == [
        (True, "daily 1 of 1 (2024-06-01)"),
        (True, "daily 1 of 1 (2024-06-01)"),
        (False, "less than a day old, and none of daily 1"),
    ]


def test_keep_rules_never_drop_what_must_stay() -> None:
    full = backup("full", days(50))
    middle = backup("incremental", days(40), parent=full)
    pinned = backup("config", days(30), pinned=True)
    used = backup("full", days(20))
    assert verdicts(
        full,
        middle,
        pinned,
        used,
        backup("full", days(10), components=("models",)),
        backup("incremental", days(0), parent=middle, components=("config", "models")),
        keep={"last": 1},
        in_use=[used.backup_id],
    ) == [
        (True, f"parent of {middle.backup_id}"),
        (True, f"parent of {make_backup_id('incremental', NOW)}"),
        (True, "pinned"),
        (True, "in use"),
        (True, "last good full backup"),
        (True, "last 1 of 1"),
    ]


_COMPONENTS: list[tuple[Component, ...]] = [("config",), ("database", "models"), ("database",)]


@st.composite
def histories(draw: st.DrawFn) -> list[BackupMetadata]:
    """Backups of all kinds, incrementals resting on any earlier full or incremental, in any order."""
    ages = draw(st.lists(st.integers(-2, 100), unique=True, max_size=12).map(lambda ages: sorted(ages)[::-1]))
    made: list[BackupMetadata] = []
    for age in ages:
        chain = [old for old in made if old.type in ("full", "incremental")]
        kinds: list[BackupType] = ["full", "config", "models"]
        if chain:
            kinds += ["incremental"] * 3
        kind = draw(st.sampled_from(kinds))
        made.append(
            backup(
                kind,
                days(age),
                parent=draw(st.sampled_from(chain)) if kind == "incremental" else None,
                status=draw(st.sampled_from(["success", "success", "failed"])),
                pinned=draw(st.integers(0, 9)) == 0,
                schedule=draw(st.sampled_from([None, "a", "b", "gone"])),
                components=("models",) if kind == "models" else draw(st.sampled_from(_COMPONENTS)),
            )
        )
    return draw(st.permutations(made))


limits = st.integers(1, 60)
keeps = st.dictionaries(st.sampled_from(KEEP_RULES), st.integers(0, 5), max_size=3)
policies = st.builds(
    Policy, limits, keeps, st.none() | st.fixed_dictionaries({}, optional={"a": limits, "b": limits})
)


def judge(
    backups: Sequence[BackupMetadata], policy: Policy, used: Sequence[str] = (), only: str | None = None
) -> list[Verdict]:
    return decide(backups, policy, now=NOW, in_use=used, only=only)


@given(histories(), policies, st.sampled_from([None, "a"]), st.data())
def test_nothing_that_must_stay_is_ever_dropped(
    backups: list[BackupMetadata], policy: Policy, only: str | None, data: st.DataObject
) -> None:
    used = data.draw(st.lists(st.sampled_from(backups), max_size=2)) if backups else []
    made = judge(backups, policy, [item.backup_id for item in used], only)
    assert [verdict.backup for verdict in made] == backups
    kept = {verdict.backup.backup_id for verdict in made if verdict.keep}
    assert all(item.parent in kept for item in backups if item.backup_id in kept and item.parent)
    assert all(item.backup_id in kept for item in backups if item.pinned)
    assert all(item.backup_id in kept for item in used)
    if only is not None:
        assert all(item.backup_id in kept for item in backups if item.schedule_id != only)
    if policy.schedules is None:
        assert all(item.backup_id in kept for item in backups if item.schedule_id is not None)
    if not any(policy.keep.values()):
        assert all(item.backup_id in kept for item in backups if NOW - item.moment <= days(policy.days(item)))
    groups = [
        *([item for item in backups if item.type in kinds] for kinds in _FAMILIES),
        *([item for item in backups if item.schedule_id == known] for known in policy.schedules or ()),
    ]
    for group in groups:
        good = [item for item in group if item.is_good]
        if good:
            assert max(good, key=lambda item: item.timestamp).backup_id in kept


_FAMILIES = (("full",), ("full", "incremental"), ("config",), ("models",))


@given(histories(), policies)
def test_what_is_dropped_is_old_or_kept_by_no_rule_and_nothing_holds_it(
    backups: list[BackupMetadata], policy: Policy
) -> None:
    made = judge(backups, policy)
    for verdict in made:
        if not verdict.keep:
            assert all(item.moment <= NOW for item in backups)
            ruled = any(policy.keep.values()) and verdict.backup.is_good
            assert ruled or NOW - verdict.backup.moment > days(policy.days(verdict.backup))
        assert verdict.reason


@given(histories(), st.sampled_from(KEEP_RULES), st.integers(1, 5))
def test_a_rule_keeps_as_many_as_it_says_and_no_more(
    backups: list[BackupMetadata], rule: str, count: int
) -> None:
    alone = [
        replace(item, parent=None, pinned=False, schedule_id=None, components=("config",))
        for item in backups
        if item.type == "full" and item.is_good and item.moment <= NOW
    ]
    kept = [verdict.backup for verdict in judge(alone, Policy(1, {rule: count})) if verdict.keep]
    shape = {"hourly": "%F %H", "daily": "%F", "weekly": "%G %V", "monthly": "%Y %m", "yearly": "%Y"}.get(
        rule
    )
    periods = {item.moment.strftime(shape) if shape else item.backup_id for item in alone}
    assert len(kept) == min(count, len(periods))


@given(histories(), policies)
def test_deciding_again_over_what_was_kept_drops_nothing(
    backups: list[BackupMetadata], policy: Policy
) -> None:
    kept = [verdict.backup for verdict in judge(backups, policy) if verdict.keep]
    assert all(verdict.keep for verdict in judge(kept, policy))


@given(histories(), policies, st.randoms(use_true_random=False))
def test_the_order_given_changes_no_verdict(
    backups: list[BackupMetadata], policy: Policy, random: Random
) -> None:
    shuffled = list(backups)
    random.shuffle(shuffled)
    by_id = {verdict.backup.backup_id: verdict for verdict in judge(shuffled, policy)}
    assert all(verdict == by_id[verdict.backup.backup_id] for verdict in judge(backups, policy))
