from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, StorageError
from holdfast.eventlog import describe, log
from holdfast.events import (
    DrillFinished,
    Event,
    Noted,
    Progressed,
    RunFailed,
    ScheduleDisabled,
    ScheduledRunFailed,
    ScheduledRunFinished,
    StageStarted,
    Warned,
)
from holdfast.logs import Lines, PrivateRotatingFile, scheduler_log


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[PrivateRotatingFile]:
    made = PrivateRotatingFile(tmp_path / "logs" / "scheduler.log", max_bytes=1000)
    yield made
    made.close()


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("holdfast", level, "", 0, message, (), None)
    made.created = 1704074400.5
    return made


def test_a_line_is_of_utc_and_one_line_whatever_it_says() -> None:
    assert Lines("text").format(record("made")) == "2024-01-01T02:00:00 INFO made"
    assert Lines("text").format(record("a\nb\x1b[31m")) == "2024-01-01T02:00:00 INFO a\\nb\\x1b[31m"
    assert json.loads(Lines("json").format(record('say "x"', logging.ERROR))) == {
        "time": "2024-01-01T02:00:00",
        "level": "ERROR",
        "message": 'say "x"',
    }


def test_it_is_rotated_and_five_old_files_stay_all_private(handler: PrivateRotatingFile) -> None:
    for number in range(200):
        handler.emit(record(f"{number:040}"))
    path = Path(handler.baseFilename)
    assert sorted(found.name for found in path.parent.iterdir()) == [
        path.name,
        *(f"{path.name}.{number}" for number in range(1, 6)),
    ]
    for found in path.parent.iterdir():
        assert found.stat().st_mode & 0o777 == 0o600
        assert found.stat().st_size <= 1000
    assert path.read_text().splitlines()[-1].endswith(f"{199:040}")


def test_what_was_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("before\n")
    handler = PrivateRotatingFile(tmp_path / "a.log")
    handler.emit(record("after"))
    handler.close()
    assert (tmp_path / "a.log").read_text() == "before\n2024-01-01T02:00:00 INFO after\n"


def test_it_follows_its_name_when_a_restore_swaps_the_directory(handler: PrivateRotatingFile) -> None:
    path = Path(handler.baseFilename)
    handler.emit(record("one"))
    path.parent.rename(path.parent.with_name("kept"))
    handler.emit(record("two"))
    assert path.read_text() == "2024-01-01T02:00:00 INFO two\n"
    path.unlink()
    path.write_text("of a backup\n")
    handler.emit(record("three"))
    assert path.read_text() == "of a backup\n2024-01-01T02:00:00 INFO three\n"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "a.log").symlink_to(other)
    with pytest.raises(ConfigError, match="is a link"):
        PrivateRotatingFile(tmp_path / "a.log")
    assert other.read_text() == "precious"


def test_where_it_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(StorageError, match=r"backup_scheduler\.log"), scheduler_log(tmp_path, "INFO", "text"):
        pass


def test_what_cannot_be_written_later_is_told_once_and_raises_nothing(
    handler: PrivateRotatingFile, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(handler.baseFilename)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file")
    handler.emit(record("one"))
    handler.emit(record("two"))
    assert capsys.readouterr().err.count("cannot be written") == 1
    path.parent.unlink()
    handler.emit(record("three"))
    assert "three" in path.read_text()


def test_the_schedulers_log_has_what_the_terminal_has_from_a_level_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("holdfast")
    before = logger.handlers[:], logger.level
    with scheduler_log(tmp_path, "INFO", "text") as path:
        log(Noted("said"))
        log(StageStarted("read", "models"))
    assert (logger.handlers, logger.level) == before
    assert path == tmp_path / "logs" / "backup_scheduler.log"
    assert path.read_text().endswith(" INFO said\n")
    assert path.read_text() == capsys.readouterr().err
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (ScheduledRunFinished("nightly", "full_1", 5, "2024", None), logging.INFO, "made full_1, 5 bytes"),
        (
            ScheduledRunFailed("nightly", "no room", "Free some.", "2024", 2, None, ()),
            logging.ERROR,
            "failed, 2 in a row: no room. Free some. Next run 2024",
        ),
        (ScheduleDisabled("nightly", 3, None), logging.CRITICAL, "holdfast schedule enable nightly"),
        (
            DrillFinished("full_1", 9, 7, 5, 0),
            logging.INFO,
            "drill full_1: took 9.0 s; a restore would take 7.0 s",
        ),
        (DrillFinished("full_1", 9, None, 5, 0), logging.INFO, "drill full_1: took 9.0 s"),
        (RunFailed("backup", "full_1", "a\nb"), logging.ERROR, "backup full_1: a\\nb"),
        (Warned("careful"), logging.WARNING, "careful"),
        (Progressed(5), logging.DEBUG, "5 bytes"),
    ],
)
def test_each_event_has_its_level_and_its_words(event: Event, level: int, words: str) -> None:
    told = describe(event)
    assert told is not None
    assert told[0] == level
    assert words in told[1]


def test_an_event_without_words_has_no_line() -> None:
    assert describe(Event()) is None
