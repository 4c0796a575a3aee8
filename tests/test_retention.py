from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.clock import timestamp
from holdfast.errors import UsageError
from holdfast.model import BackupMetadata, BackupType, make_backup_id
from holdfast.retention import Verdict, decide

NOW = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)


def backup(
    kind: BackupType,
    age: timedelta,
    *,
    parent: BackupMetadata | str | None = None,
    status: str = "success",
    pinned: bool = False,
) -> BackupMetadata:
    moment = NOW - age
    return BackupMetadata(
        backup_id=make_backup_id(kind, moment),
        timestamp=timestamp(moment),
        version="1.0.0",
        type=kind,
        size_bytes=1,
        checksum="",
        components=("config",),
        status=status,
        parent=parent.backup_id if isinstance(parent, BackupMetadata) else parent,
        pinned=pinned,
    )


def days(number: float) -> timedelta:
    return timedelta(days=number)


def verdicts(
    *backups: BackupMetadata, now: datetime = NOW, in_use: Sequence[str] = ()
) -> list[tuple[bool, str]]:
    return [(v.keep, v.reason) for v in decide(backups, now=now, retention_days=30, in_use=in_use)]


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
    assert decide([], now=NOW, retention_days=1) == []


def test_a_retention_that_is_no_retention_is_refused() -> None:
    with pytest.raises(UsageError, match="retention_days is 0"):
        decide([backup("full", days(1))], now=NOW, retention_days=0)


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
            )
        )
    return draw(st.permutations(made))


limits = st.integers(1, 60)


def judge(backups: Sequence[BackupMetadata], limit: int, used: Sequence[str] = ()) -> list[Verdict]:
    return decide(backups, now=NOW, retention_days=limit, in_use=used)


@given(histories(), limits, st.data())
def test_nothing_that_must_stay_is_ever_dropped(
    backups: list[BackupMetadata], limit: int, data: st.DataObject
) -> None:
    used = data.draw(st.lists(st.sampled_from(backups), max_size=2)) if backups else []
    made = judge(backups, limit, [item.backup_id for item in used])
    assert [verdict.backup for verdict in made] == backups
    kept = {verdict.backup.backup_id for verdict in made if verdict.keep}
    assert all(item.parent in kept for item in backups if item.backup_id in kept and item.parent)
    assert all(item.backup_id in kept for item in backups if item.pinned)
    assert all(item.backup_id in kept for item in used)
    assert all(item.backup_id in kept for item in backups if NOW - item.moment <= days(limit))
    for kinds in (("full",), ("full", "incremental"), ("config",), ("models",)):
        good = [item for item in backups if item.type in kinds and item.is_good]
        if good:
            assert max(good, key=lambda item: item.timestamp).backup_id in kept


@given(histories(), limits)
def test_what_is_dropped_is_old_and_nothing_holds_it(backups: list[BackupMetadata], limit: int) -> None:
    made = judge(backups, limit)
    for verdict in made:
        if not verdict.keep:
            assert NOW - verdict.backup.moment > days(limit)
            assert all(item.moment <= NOW for item in backups)
    reasons = {
        "pinned",
        "last good backup",
        "last good full backup",
        "last good config backup",
        "last good models backup",
    }
    for verdict in made:
        assert verdict.reason in reasons or any(
            phrase in verdict.reason for phrase in ("kept for", "limit", "parent of", "the clock")
        )


@given(histories(), limits)
def test_deciding_again_over_what_was_kept_drops_nothing(backups: list[BackupMetadata], limit: int) -> None:
    kept = [verdict.backup for verdict in judge(backups, limit) if verdict.keep]
    assert all(verdict.keep for verdict in judge(kept, limit))


@given(histories(), limits, st.randoms(use_true_random=False))
def test_the_order_given_changes_no_verdict(
    backups: list[BackupMetadata], limit: int, random: Random
) -> None:
    shuffled = list(backups)
    random.shuffle(shuffled)
    by_id = {verdict.backup.backup_id: verdict for verdict in judge(shuffled, limit)}
    assert all(verdict == by_id[verdict.backup.backup_id] for verdict in judge(backups, limit))
