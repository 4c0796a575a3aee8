from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.schedules import next_due

BERLIN = "Europe/Berlin"  # 2024: forward on March 31, 02:00 to 03:00; back on October 27, 03:00 to 02:00


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def wall(schedule_type: str, zone: str, begin: str, end: str) -> list[str]:
    """What the clock on the wall shows each time that it is due between two moments in UTC."""
    found = []
    moment = next_due(schedule_type, zone, at(begin))
    while moment <= at(end):
        found.append(moment.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z"))
        moment = next_due(schedule_type, zone, moment)
    return found


@pytest.mark.parametrize(
    ("schedule_type", "after", "expected"),
    [
        ("daily", "2024-01-01T00:00:00", "2024-01-01T02:00:00"),
        ("daily", "2024-01-01T02:00:00", "2024-01-02T02:00:00"),
        ("daily", "2024-12-31T02:00:01", "2025-01-01T02:00:00"),
        ("weekly", "2024-01-01T00:00:00", "2024-01-07T02:00:00"),
        ("weekly", "2024-01-07T01:59:59", "2024-01-07T02:00:00"),
        ("weekly", "2024-01-07T02:00:00", "2024-01-14T02:00:00"),
        ("monthly", "2024-01-01T02:00:00", "2024-02-01T02:00:00"),
        ("monthly", "2024-12-15T00:00:00", "2025-01-01T02:00:00"),
        ("hourly", "2024-02-29T23:00:00", "2024-03-01T00:00:00"),
        ("hourly", "2024-01-01T00:59:59", "2024-01-01T01:00:00"),
        ("30 4 29 2 *", "2024-03-01T00:00:00", "2028-02-29T04:30:00"),
        ("0 22 * * mon-fri", "2024-01-05T22:00:00", "2024-01-08T22:00:00"),
        ("*/15 * * * *", "2024-01-01T00:07:00", "2024-01-01T00:15:00"),
        ("0 3 L * *", "2024-02-01T00:00:00", "2024-02-29T03:00:00"),
    ],
)
def test_each_type_is_due_at_its_time(schedule_type: str, after: str, expected: str) -> None:
    assert next_due(schedule_type, "UTC", at(after)) == at(expected)


def test_a_part_of_a_second_makes_no_difference() -> None:
    after = at("2024-01-01T01:59:59") + timedelta(microseconds=999_999)
    assert next_due("daily", "UTC", after) == at("2024-01-01T02:00:00")
    assert next_due("daily", "UTC", at("2024-01-01T02:00:00") + timedelta(microseconds=1)) == at(
        "2024-01-02T02:00:00"
    )


@pytest.mark.parametrize("line", ["30 2 * * *", "*/30 2 * * *", "0,30 2 * * *", "30 2-2 * * *"])
def test_what_the_clock_leaps_over_in_spring_is_due_right_after_and_once(line: str) -> None:
    due = wall(line, BERLIN, "2024-03-31T00:00:00", "2024-03-31T12:00:00")
    assert due == ["03-31 03:00 +0200"]
    before = wall(line, BERLIN, "2024-03-30T00:00:00", "2024-03-30T12:00:00")
    assert before[-1] == "03-30 02:30 +0100"


def test_in_the_hour_that_comes_twice_in_autumn_it_is_due_once() -> None:
    assert wall("30 2 * * *", BERLIN, "2024-10-26T12:00:00", "2024-10-28T12:00:00") == [
        "10-27 02:30 +0200",
        "10-28 02:30 +0100",
    ]
    assert wall("*/20 2 * * *", BERLIN, "2024-10-26T12:00:00", "2024-10-27T12:00:00") == [
        "10-27 02:00 +0200",
        "10-27 02:20 +0200",
        "10-27 02:40 +0200",
    ]


@pytest.mark.parametrize("minutes", range(0, 130, 10))
def test_whoever_asks_within_the_hour_that_comes_twice_hears_of_no_time_that_has_passed(minutes: int) -> None:
    after = at("2024-10-27T00:00:00") + timedelta(minutes=minutes)  # 02:00 by the wall, the first time
    expected = "2024-10-27T00:30:00" if minutes < 30 else "2024-10-28T01:30:00"
    assert next_due("30 2 * * *", BERLIN, after) == at(expected)


def test_hourly_goes_by_time_that_passes() -> None:
    spring = wall("hourly", BERLIN, "2024-03-31T00:00:00", "2024-03-31T03:00:00")
    assert spring == ["03-31 03:00 +0200", "03-31 04:00 +0200", "03-31 05:00 +0200"]
    autumn = wall("hourly", BERLIN, "2024-10-26T23:30:00", "2024-10-27T02:00:00")
    assert autumn == ["10-27 02:00 +0200", "10-27 02:00 +0100", "10-27 03:00 +0100"]


def test_daily_in_a_zone_is_at_two_by_its_clock() -> None:
    assert next_due("daily", "Asia/Tokyo", at("2024-01-01T00:00:00")) == at("2024-01-01T17:00:00")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fortnightly",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "0 24 * * *",
        "0 0 31 2 *",
        "0 0 30 2 *",
        "*/0 * * * *",
        "5-1 * * * *",
        "0 2 * * * ; rm",
        "@daily",
        "\u0661 * * * *",
        "0 2 * * \n",
        "0,1" * 200 + " * * * *",
    ],
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"schedule|cron|fits no day"):
        next_due(line, "UTC", at("2024-01-01T00:00:00"))


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Europe/Nowhere",
        "../../etc/passwd",
        "/etc/localtime",
        "Europe/../UTC",
        "a\0b",
        "Europe",
        "x" * 999,
    ],
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="not the name of a time zone"):
        next_due("daily", zone, at("2024-01-01T00:00:00"))


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    spans = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    part = st.one_of(number.map(str), spans, st.just("*"))
    stepped = st.tuples(part, st.integers(1, 70)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.lists(part | stepped, min_size=1, max_size=3).map(",".join)


lines = st.tuples(
    fields(0, 59), fields(0, 23), st.just("*") | fields(1, 28), st.just("*"), st.just("*") | fields(0, 7)
).map(" ".join)
zones = st.sampled_from(
    [
        "UTC",
        BERLIN,
        "America/New_York",
        "America/Havana",
        "Africa/Cairo",
        "Australia/Lord_Howe",
        "Asia/Kolkata",
    ]
)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(
    lambda naive: naive.replace(tzinfo=UTC)
)


@given(lines, zones, moments)
@example("0 0 * * *", "America/Havana", datetime(2024, 11, 3, 3, 30, tzinfo=UTC))
@example("0 0 * * *", "Africa/Cairo", datetime(2024, 4, 25, 12, 0, tzinfo=UTC))
def test_it_is_always_due_again_later_and_a_later_question_gets_no_earlier_answer(
    line: str, zone: str, after: datetime
) -> None:
    first = next_due(line, zone, after)
    assert first > after
    assert (first.second, first.microsecond, first.tzinfo) == (0, 0, UTC)
    between = after + (first - after) / 2
    assert next_due(line, zone, between) == first


@given(st.integers(0, 23), st.integers(0, 59), zones, st.integers(2020, 2030))
def test_a_daily_time_comes_once_on_every_day_of_the_year(
    hour: int, minute: int, zone: str, year: int
) -> None:
    begin, end = (datetime(y, 1, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC) for y in (year, year + 1))
    due = []
    moment = next_due(f"{minute} {hour} * * *", zone, begin - timedelta(seconds=1))
    while moment < end:
        due.append(moment)
        moment = next_due(f"{minute} {hour} * * *", zone, moment)
    days = {moment.astimezone(ZoneInfo(zone)).date() for moment in due}
    assert len(days) == len(due) == (366 if year % 4 == 0 else 365)
    assert all(
        timedelta(hours=22) < later - earlier < timedelta(hours=26) for earlier, later in pairwise(due)
    )


@given(st.text("0123456789*/,-#LWMON ", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_line_or_is_refused(text: str) -> None:
    try:
        due = next_due(text, "UTC", at("2024-01-01T00:00:00"))
    except ValueError:
        return
    assert due > at("2024-01-01T00:00:00")


@given(st.text("0123456789*/,-#LWMON", min_size=1, max_size=8), st.integers(0, 4))
def test_any_field_is_one_or_is_refused(text: str, place: int) -> None:
    line = ["0", "2", "*", "*", "*"]
    line[place] = text
    try:
        next_due(" ".join(line), BERLIN, at("2024-01-01T00:00:00"))
    except ValueError:
        return
