from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.metrics import BUCKETS, Numbers
from holdfast.metrics._derive import History, derive


def backup(status: str = "success", **more: Any) -> dict[str, Any]:
    record = {"time": "2024-01-01T02:00:00", "verb": "backup", "type": "full", "status": status}
    if status == "success":
        record |= {"size_bytes": 100, "source_bytes": 1000, "duration_seconds": 12.5}
    return record | more


def test_successes_and_failures_are_counted_and_what_was_interrupted_is_neither() -> None:
    numbers = derive(
        [
            backup(),
            backup("failed", error="SourceChanged"),
            backup("failed", error="Interrupted"),
            backup("failed", error="KeyboardInterrupt"),
            backup("failed", error="StorageError"),
        ]
    )
    assert (numbers.successes, numbers.failures, numbers.failures_in_row) == (1, 2, 2)


def test_a_success_ends_a_row_of_failures() -> None:
    numbers = derive([backup("failed"), backup("failed"), backup(), backup("failed")])
    assert (numbers.failures, numbers.failures_in_row) == (3, 1)


def test_sizes_and_durations_are_those_of_good_backups() -> None:
    numbers = derive(
        [
            backup(duration_seconds=10),
            backup(duration_seconds=1800.5, size_bytes=7, source_bytes=70),
            backup("failed", duration_seconds=5000),
        ]
    )
    assert numbers.durations[BUCKETS.index(10)] == 1
    assert numbers.durations[BUCKETS.index(3600)] == 1
    assert sum(numbers.durations) == 2
    assert (numbers.duration_sum, numbers.last_duration) == (1810.5, 1800.5)
    assert (numbers.last_size, numbers.stored_bytes, numbers.source_bytes) == (7, 107, 1070)


def test_the_last_success_is_a_backup_of_the_whole() -> None:
    numbers = derive([backup(), backup(time="2024-01-05T02:00:00", type="models")])
    assert numbers.last_success == 1704074400
    later = derive([backup(), backup(time="2024-01-02T02:00:00", type="incremental")])
    assert later.last_success == 1704074400 + 86400


def test_drills_are_counted_by_result_with_the_duration_of_the_last_good_one() -> None:
    numbers = derive(
        [
            {"verb": "drill", "status": "success", "duration_seconds": 12.5},
            {"verb": "drill", "status": "success", "duration_seconds": 9},
            {"verb": "drill", "status": "success", "duration_seconds": "long"},
            {"verb": "drill", "status": "failed", "error": "CorruptBackup", "duration_seconds": 1},
            {"verb": "drill", "status": "failed", "error": "HookFailed", "duration_seconds": 2},
            {"verb": "drill", "status": "failed", "error": "Interrupted"},
            {"verb": "drill", "status": "failed", "error": "LockHeld"},
            {"verb": "drill", "status": "failed", "error": "UsageError"},
        ]
    )
    assert numbers.drills == {"success": 3, "failed": 2}
    assert numbers.last_drill_duration == 9
    assert derive([]).last_drill_duration is None


def test_restores_and_verifications_are_counted_by_result() -> None:
    numbers = derive(
        [
            {"verb": "restore", "status": "success"},
            {"verb": "restore", "status": "failed", "error": "CorruptBackup"},
            {"verb": "restore", "status": "failed", "error": "ConfirmationRequired"},
            {"verb": "restore", "status": "failed", "error": "Interrupted"},
            {"verb": "verify", "status": "success", "message": ""},
            {"verb": "verify", "status": "failed", "error": "CorruptBackup"},
            {"verb": "verify", "status": "failed", "error": "Interrupted"},
            {"verb": "undo", "status": "success"},
            {"verb": "expire", "status": "success"},
        ]
    )
    assert numbers.restores == {"success": 1, "failed": 1}
    assert numbers.verifications == {"success": 1, "failed": 1}
    assert numbers.successes == 0


@pytest.mark.parametrize("value", [-1, True, None, "5", float("nan"), float("inf"), 1 << 70, [], {}])
def test_a_number_that_is_none_is_passed_over(value: object) -> None:
    numbers = derive(
        [backup(), backup(size_bytes=value, source_bytes=value, duration_seconds=value, time=value)]
    )
    assert (numbers.successes, numbers.stored_bytes, numbers.source_bytes) == (2, 100, 1000)
    assert (sum(numbers.durations), numbers.duration_sum) == (1, 12.5)
    assert numbers.last_success == 1704074400


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
RECORDS = JSON | st.fixed_dictionaries(
    {
        "verb": st.sampled_from(["backup", "restore", "verify"]) | JSON,
        "status": st.sampled_from(["success", "failed"]) | JSON,
    },
    optional={"time": JSON, "error": JSON, "size_bytes": JSON, "duration_seconds": JSON, "type": JSON},
)


@given(st.lists(RECORDS))
def test_no_record_does_harm(records: list[object]) -> None:
    numbers = derive(records)
    assert numbers.successes + numbers.failures <= len(records)
    assert numbers.failures_in_row <= numbers.failures


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def append(file: Path, *lines: str) -> None:
    with file.open("a") as opened:
        opened.writelines(lines)


SUCCESS = json.dumps(backup()) + "\n"


def test_a_history_that_is_not_there_is_empty(file: Path) -> None:
    assert History(file).read().successes == 0


def test_each_record_is_counted_once_however_often_is_looked(file: Path) -> None:
    history = History(file)
    for expected in range(1, 4):
        append(file, SUCCESS)
        assert history.read().successes == expected
        assert history.read().successes == expected
    assert derive(json.loads(line) for line in file.read_text().splitlines()).successes == 3


def test_a_record_counts_when_it_is_whole(file: Path) -> None:
    history = History(file)
    append(file, SUCCESS, SUCCESS[:20])
    assert history.read().successes == 1
    append(file, SUCCESS[20:])
    assert history.read().successes == 2


def test_lines_that_are_no_records_are_passed_over(file: Path) -> None:
    append(file, "{\n", "[" * 100_000 + "\n", "5\n", "\n", "x" * (3 << 20) + "\n", SUCCESS)
    assert History(file).read().successes == 1


def test_a_history_that_begins_anew_is_read_anew(file: Path) -> None:
    history = History(file)
    append(file, SUCCESS * 5)
    assert history.read().successes == 5
    file.write_text(SUCCESS)
    assert history.read().successes == 1
    other = file.with_name("other")
    other.write_text(SUCCESS * 9)
    other.rename(file)
    assert history.read().successes == 9
    file.unlink()
    assert history.read().successes == 0


def test_numbers_do_not_grow_with_the_history() -> None:
    numbers = Numbers()
    sizes = set()
    for round_ in range(3):
        for number in range(2000):
            numbers.add(
                backup("success" if number % 3 else "failed", schedule_id=str(round_ * 2000 + number))
            )
        sizes.add(sum(len(value) for value in vars(numbers).values() if isinstance(value, (list, dict))))
    assert len(sizes) == 1
