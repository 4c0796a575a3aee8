"""Kills a process at many points of a swap and looks what becomes of the data. A program of its own: it forks.

    sqlite_crashes.py DIRECTORY SCENARIO VICTIM STRIDE

SCENARIO: what is live, see `prepare`. VICTIM: what is killed, see `VICTIMS`. It is killed at every STRIDE-th line of
the swap's code, and a few times by a timer, which strikes in the midst of SQLite's. Each time a process that knows
only the journal puts things right. Prints how many were killed; ends with an error when data is not as promised.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

from holdfast.sources.sqlite import SqliteSwap, _snapshot
from holdfast.sources.sqlite import _connection as _sqlite_connection
from holdfast.sources.sqlite import _swap as _sqlite_swap
from sources.sqlite_files import dump, make, one, stage

TRACED = {module.__file__ for module in (_snapshot, _sqlite_connection, _sqlite_swap)}
TIMED = 5


def main(directory: Path, scenario: str, victim: str, stride: int) -> None:
    # The kernel forgets nothing when a process is killed, so there is no need to wait for the disk.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    template, work = directory / "template", directory / "work"
    live, old, new, journal = prepare(work, scenario)
    run(lambda: VICTIMS[victim][0](journal))
    shutil.copytree(work, template, symlinks=True)
    killed = 0
    line = 1
    while attempt(journal, victim, work, template, live, old, new, line=line):
        killed += 1
        line += stride
    started = time.monotonic()
    attempt(journal, victim, work, template, live, old, new)
    whole = time.monotonic() - started
    for number in range(TIMED):
        killed += attempt(
            journal, victim, work, template, live, old, new, seconds=whole * (number + 1) / TIMED
        )
    print(killed)


def prepare(work: Path, scenario: str) -> tuple[Path, Any, Any, str]:
    live, backup = work / "live.db", work.parent / "backup.db"
    make(backup, rows=300, text="new", page_size=1024 if scenario == "other-pages" else 4096)
    if scenario == "missing":
        work.mkdir()
    else:
        make(live, wal=scenario in ("wal", "other-pages"))
    if scenario == "damaged":
        live.write_bytes(live.read_bytes()[:5000])
        Path(f"{live}-wal").write_bytes(b"of no use")
    swap = stage(backup, live, timeout=5)
    return live, state_of(live), state_of(backup), json.dumps(swap.to_journal())


def attempt(
    journal: str,
    victim: str,
    work: Path,
    template: Path,
    live: Path,
    old: Any,
    new: Any,
    *,
    line: int | None = None,
    seconds: float | None = None,
) -> bool:
    """Whether it was killed. A victim that comes to its end is checked as well."""
    _, action, repair, repaired, done = VICTIMS[victim]
    shutil.rmtree(work)
    shutil.copytree(template, work, symlinks=True)
    was_killed = run(lambda: action(journal), line=line, seconds=seconds)
    if not was_killed:
        assert state_of(live) == (old if done == "old" else new), f"{victim} did not do its work"
    # Between a crash that came before the swap and the repair, the service may have gone on.
    went_on = was_killed and victim == "apply" and isinstance(old, list) and state_of(live) == old
    if went_on:
        run_sql(live, "INSERT INTO ledger VALUES (7)")
    assert not run(lambda: repair(journal))
    if went_on:
        assert one(live, "SELECT number FROM ledger") == 7, f"killed at line {line}: a later write is lost"
        run_sql(live, "DELETE FROM ledger")
    expected = old if repaired == "old" else new
    assert state_of(live) == expected, f"killed at line {line}, after {seconds} s: not as promised"
    assert not run(lambda: repair(journal))
    assert state_of(live) == expected, (
        f"killed at line {line}, after {seconds} s: not the same the second time"
    )
    if victim == "undo":
        assert not run(lambda: undo(journal))
        assert state_of(live) == old, (
            f"killed at line {line}, after {seconds} s: it cannot be undone any more"
        )
    swap(journal).discard()
    left = {name for name in os.listdir(work) if not name.startswith("live.db")}
    assert not left, left
    return was_killed


def run(action: Callable[[], None], *, line: int | None = None, seconds: float | None = None) -> bool:
    """Runs it in a process of its own. True when that was killed."""
    child = os.fork()
    if child == 0:
        try:
            if seconds is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, seconds)
            if line is not None:
                kill_at(line)
            action()
            os._exit(0)
        finally:
            sys.settrace(None)
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status <= 0, "the process failed by itself"
    return status < 0


def kill_at(line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def run_sql(live: Path, statement: str) -> None:
    with closing(sqlite3.connect(live, isolation_level=None)) as database:
        database.execute(statement)


def swap(journal: str) -> SqliteSwap:
    return SqliteSwap.from_journal(json.loads(journal))


def apply(journal: str) -> None:
    swap(journal).apply()


def revert(journal: str) -> None:
    swap(journal).revert()


def apply_and_settle(journal: str) -> None:
    restore = swap(journal)
    restore.apply()
    restore.settle()


def undo(journal: str) -> None:
    swap(journal).reversed().apply()


def revert_undo(journal: str) -> None:
    reverse = swap(journal).reversed()
    reverse.revert()


VICTIMS: dict[str, tuple[Callable[[str], None], Callable[[str], None], Callable[[str], None], str, str]] = {
    # before, what is killed, what puts it right, and what is live then; what is live when it is not killed
    "apply": (lambda journal: None, apply, revert, "old", "new"),
    "revert": (apply, revert, revert, "old", "old"),
    "undo": (apply_and_settle, undo, revert_undo, "new", "old"),
}


def state_of(live: Path) -> Any:
    """All rows; or the bytes of what is no database, with its log."""
    if not live.exists():
        return None
    if live.stat().st_size == 5000:
        return live.read_bytes(), Path(f"{live}-wal").read_bytes()
    return dump(live)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
