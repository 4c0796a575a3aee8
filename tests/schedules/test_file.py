from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError, LockHeld
from holdfast.schedules import Schedule, ScheduleFile

NIGHTLY = Schedule(
    schedule_id="nightly",
    schedule_type="daily",
    components=("database", "models"),
    retention_days=30,
    next_run=datetime(2024, 1, 2, 2, 0, tzinfo=UTC),
    status="active",
    created_at=datetime(2024, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def file(tmp_path: Path) -> ScheduleFile:
    return ScheduleFile(tmp_path / "backups")


def write(file: ScheduleFile, text: str | bytes) -> None:
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))


def add(file: ScheduleFile, *schedules: Schedule) -> None:
    with file.changing() as known:
        known.update({schedule.schedule_id: schedule for schedule in schedules})


def refused(file: ScheduleFile, text: str | bytes) -> ConfigError:
    """A file of that text is refused by name, and left as it is."""
    write(file, text)
    before = file.path.read_bytes()
    with pytest.raises(ConfigError) as reading:
        file.read()
    with pytest.raises(ConfigError), file.changing() as schedules:
        schedules.clear()
    assert file.path.read_bytes() == before
    assert str(reading.value).startswith(str(file.path))
    assert "Correct it by hand" in reading.value.hint
    return reading.value


def plain(**changes: Any) -> dict[str, Any]:
    return NIGHTLY.to_json() | changes


def text_of(*schedules: dict[str, Any]) -> str:
    return json.dumps({schedule["schedule_id"]: schedule for schedule in schedules}, indent=2)


def test_what_was_written_is_read_again(file: ScheduleFile) -> None:
    assert file.read() == {}
    busy = replace(
        NIGHTLY,
        schedule_id="busy",
        schedule_type="*/5 1-3 * * mon-fri",
        timezone="Europe/Berlin",
        backup_type="incremental",
        drill="weekly",
        notification_email="admin@example.com",
        last_run=datetime(2024, 1, 1, 2, 0, tzinfo=UTC),
        last_status="failed",
        consecutive_failures=2,
        default_components=True,
        started_at=datetime(2024, 1, 1, 2, 0, tzinfo=UTC),
        attempts=1,
    )
    add(file, NIGHTLY, busy)
    assert file.read() == {"nightly": NIGHTLY, "busy": busy}
    assert list(json.loads(file.path.read_text())) == ["nightly", "busy"]


def test_it_is_for_the_owner_alone_and_nothing_is_left_beside_it(file: ScheduleFile) -> None:
    left = file.path.parent / "temp" / "schedules.json.0.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("of a run that was killed")
    add(file, NIGHTLY)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.path.parent.rglob("*")) == [
        "schedules.json",
        "schedules.lock",
        "temp",
    ]


def test_what_is_as_it_was_is_not_written(file: ScheduleFile) -> None:
    add(file, NIGHTLY)
    before = file.path.stat().st_ino
    add(file, NIGHTLY)
    assert file.path.stat().st_ino == before


def test_a_change_that_fails_changes_nothing(file: ScheduleFile) -> None:
    add(file, NIGHTLY)

    def fail() -> None:
        with file.changing() as schedules:
            schedules.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read() == {"nightly": NIGHTLY}


def test_a_list_of_schedules_and_one_alone_are_read_and_written_by_id(file: ScheduleFile) -> None:
    write(file, json.dumps([plain(), plain(schedule_id="weekly", schedule_type="weekly")]))
    assert list(file.read()) == ["nightly", "weekly"]
    write(file, json.dumps(plain()))
    assert file.read() == {"nightly": NIGHTLY}
    add(file, replace(NIGHTLY, schedule_id="other"))
    assert list(json.loads(file.path.read_text())) == ["nightly", "other"]


def test_what_ran_never_need_not_say_so(file: ScheduleFile) -> None:
    required = (
        "schedule_id",
        "schedule_type",
        "components",
        "retention_days",
        "next_run",
        "status",
        "created_at",
    )
    write(file, json.dumps([{key: plain()[key] for key in required}]))
    assert file.read() == {"nightly": NIGHTLY}
    for key in required:
        told = refused(file, json.dumps([{name: plain()[name] for name in required if name != key}]))
        assert key in str(told)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule_id", "../../etc/passwd"),
        ("schedule_id", ""),
        ("schedule_id", "x" * 65),
        ("schedule_id", 5),
        ("schedule_type", "fortnightly"),
        ("schedule_type", "0 0 30 2 *"),
        ("components", []),
        ("components", ["databse"]),
        ("components", "database"),
        ("retention_days", 0),
        ("retention_days", 1e300),
        ("retention_days", "30"),
        ("retention_days", True),
        ("next_run", "tomorrow"),
        ("next_run", "2024-13-01T02:00:00"),
        ("next_run", "2024-01-02T02:00:00+01:00"),
        ("next_run", "2024-01-02"),
        ("next_run", None),
        ("next_run", 1704160800),
        ("status", "on"),
        ("status", None),
        ("last_run", ""),
        ("last_status", "running"),
        ("consecutive_failures", -1),
        ("consecutive_failures", 10**20),
        ("consecutive_failures", None),
        ("notification_email", "a@b\r\nBcc: c@d"),
        ("timezone", "Mars/Olympus"),
        ("timezone", "/etc/passwd"),
        ("drill", "rm -rf /"),
        ("attempts", 0.5),
        ("hooks", ["rm", "-rf", "/"]),
        ("ping_url", "https://example.com"),
    ],
)
def test_a_field_that_is_none_is_refused_with_its_line(file: ScheduleFile, key: str, value: Any) -> None:
    text = text_of(plain(schedule_id="first"), plain(**{key: value}))
    second = text.index('"nightly": {') if '"nightly": {' in text else text.index("}") + 1
    line = text.count("\n", 0, text.index(f'"{key}":', second)) + 1
    told = refused(file, text)
    assert str(told).startswith(f"{file.path}, line {line}: ")
    assert key in str(told)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "not JSON"),
        ("{\n  nightly: {}\n}", 2, "not JSON"),
        ('{"a": 1}', 1, "1 is not a schedule"),
        ("[\n\n 5]", 3, "5 is not a schedule"),
        ("5", 1, "not an object"),
        ('"text"', 1, "not an object"),
        ("null", 1, "not an object"),
        ("{\n}\n}", 3, "not JSON"),
        (b'{\n\n"\xff": {}}', 3, "not UTF-8"),
        ("\ufeff{}", 1, "not JSON"),
        ("[" * 100_000, 1, "nested"),
        ('{"a": ' * 5000, 1, "nested"),
        ('{\n"a": {},\n"a": {}}', 3, "comes twice"),
        ('{"a": NaN}', 1, "NaN"),
        ('{"a": ' + "9" * 5000 + "}", 1, "digits"),
    ],
)
def test_what_is_no_list_of_schedules_is_refused_with_its_line(
    file: ScheduleFile, text: str | bytes, line: int, what: str
) -> None:
    told = refused(file, text)
    assert str(told).startswith(f"{file.path}, line {line}: ")
    assert what in str(told)


def test_a_schedule_or_a_field_that_comes_twice_is_refused(file: ScheduleFile) -> None:
    one = json.dumps(plain())
    assert "comes twice" in str(refused(file, f'{{\n"nightly": {one},\n"nightly": {one}\n}}'))
    assert ", line 3: " in str(refused(file, f"[\n{one},\n{one}\n]"))
    twice = one.replace('"status": "active"', '"status": "active",\n"status": "disabled"')
    assert ", line 3: " in str(refused(file, f"[\n{twice}]"))


def test_a_schedule_under_another_ones_id_is_refused(file: ScheduleFile) -> None:
    told = refused(file, json.dumps({"weekly": plain()}))
    assert "'weekly'" in str(told)


def test_a_key_that_is_none_is_refused_with_the_nearest_one(file: ScheduleFile) -> None:
    assert "Did you mean retention_days?" in refused(file, json.dumps([plain(retention_day=5)])).hint


def test_too_much_is_refused_and_not_written(file: ScheduleFile) -> None:
    assert "longer than" in str(refused(file, " " * (1 << 20) + "[]"))
    assert "more than 1000" in str(refused(file, json.dumps([5] * 1001)))
    file.path.unlink()
    many = [replace(NIGHTLY, schedule_id=f"n{number}") for number in range(1001)]
    with pytest.raises(ConfigError, match="cannot hold more"):
        add(file, *many)
    assert not file.path.exists()
    add(file, *many[:1000])
    assert len(file.read()) == 1000


def test_a_link_is_not_followed(file: ScheduleFile, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(text_of(plain()))
    file.path.parent.mkdir()
    file.path.symlink_to(other)
    with pytest.raises(ConfigError, match="is a link"):
        file.read()
    with pytest.raises(ConfigError, match="is a link"):
        add(file, NIGHTLY)
    assert file.path.is_symlink()
    assert other.read_text() == text_of(plain())


def test_a_fifo_is_not_waited_for(file: ScheduleFile) -> None:
    file.path.parent.mkdir()
    os.mkfifo(file.path)
    with pytest.raises(ConfigError, match="no regular file"):
        file.read()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
edits = st.dictionaries(st.sampled_from(list(NIGHTLY.to_json())) | st.text(max_size=10), values, max_size=3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ScheduleFile:
    return ScheduleFile(tmp_path_factory.mktemp("shared") / "backups")


def understood(file: ScheduleFile) -> dict[str, Schedule] | None:
    """What a file says; None where it is refused, with its line."""
    try:
        return file.read()
    except ConfigError as error:
        if f"{file.path}, line " not in str(error):
            raise
        return None


@given(st.lists(edits, max_size=3), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_edit_is_read_as_it_stands_or_refused_with_a_line(
    shared: ScheduleFile, edited: list[dict[str, Any]], as_list: bool, indent: Any
) -> None:
    schedules = [plain(schedule_id=f"s{place}") | edit for place, edit in enumerate(edited)]
    whole: Any = schedules if as_list else {f"s{place}": known for place, known in enumerate(schedules)}
    write(shared, json.dumps(whole, indent=indent))
    read = understood(shared)
    assert read is None or [known.to_json() for known in read.values()] == schedules


@given(st.binary(max_size=200) | st.text('{}[]":, \n\\tn5-', max_size=60).map(str.encode))
@example(b'{"a":{"schedule_id":"a"}}')
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_schedules_or_refused_with_a_line(shared: ScheduleFile, data: bytes) -> None:
    write(shared, data)
    assert not understood(shared)


@given(st.data())
def test_a_flipped_bit_is_refused_or_a_file_of_another_meaning(
    shared: ScheduleFile, data: st.DataObject
) -> None:
    content = bytearray(text_of(plain(), plain(schedule_id="other")).encode())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    write(shared, bytes(content))
    read = understood(shared)
    assert read is None or len(read) == 2


_ADDER = """
import sys
from dataclasses import replace
from pathlib import Path
from holdfast.schedules import ScheduleFile
file = ScheduleFile(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    with file.changing() as schedules:
        nightly = schedules["nightly"]
        schedules[f"{sys.argv[2]}{number}"] = replace(nightly, schedule_id=f"{sys.argv[2]}{number}")
"""


def test_processes_that_change_it_at_once_all_succeed(file: ScheduleFile) -> None:
    add(file, NIGHTLY)
    with ExitStack() as stack:
        adders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _ADDER, file.path.parent, name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name in ("a", "b", "c")
        ]
        for adder in adders:
            assert adder.stdout is not None
            assert adder.stdout.readline() == "ready\n"
        for adder in adders:
            adder.communicate("go\n", timeout=60)
        assert [adder.returncode for adder in adders] == [0, 0, 0]
    assert len(file.read()) == 61


def test_a_run_is_held_by_one_alone(file: ScheduleFile) -> None:
    with file.running():
        with pytest.raises(LockHeld), ScheduleFile(file.path.parent).running():
            pass
        add(file, NIGHTLY)
    with file.running():
        pass
