"""A rehearsed restore: what it proves, what it tells, and that nothing live notices."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from conformance.trees import Clock
from holdfast.errors import (
    CorruptBackup,
    HookFailed,
    Interrupted,
    KeyMissing,
    LockHeld,
    NoSpace,
    UntrustedSignature,
    UsageError,
)
from holdfast.events import DrillFailed, DrillFinished, Event, Progressed, StageStarted, ignore
from holdfast.jobs import _reading
from holdfast.jobs._drill_models import ModelCheck
from holdfast.jobs.drill import VERB, Drilled, drill
from holdfast.jobs.recover import recover
from holdfast.jobs.undo import undo
from holdfast.metrics._derive import derive
from holdfast.model import Entry
from holdfast.sources.sqlite import _snapshot
from holdfast.transaction import Transaction
from installed import Service, agree, untouched

PATIENCE = 60.0


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where drills restore to."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def service(tmp_path: Path, scratch: Path) -> Iterator[Service]:
    """Nothing is left in the scratch, whatever became of a drill."""
    yield Service.make(tmp_path)
    assert list(scratch.iterdir()) == []


def command(service: Service, *words: str) -> None:
    (service.root / "holdfast.toml").write_text(f"[drill]\ncommand = {json.dumps(list(words))}\n")


def python(service: Service, program: str) -> None:
    command(service, sys.executable, "-c", program)


def rehearse(service: Service, reference: str = "latest", **how: Any) -> Drilled:
    return drill(service.installation(), reference, **{"emit": ignore, **how})


def still(service: Service) -> AbstractContextManager[None]:
    """Nothing live or stored changes inside. Locks come and go."""
    return untouched(service.root, but=[service.backups / "temp"])


def failed(service: Service, *kinds: type[Exception], match: str, **how: Any) -> DrillFailed:
    """What is told of a drill that must fail, and touch nothing."""
    told: list[Event] = []
    with still(service), pytest.raises(kinds, match=match):
        rehearse(service, emit=told.append, **how)
    [event] = [event for event in told if isinstance(event, DrillFailed)]
    assert last_record(service)["status"] == "failed"
    return event


def last_record(service: Service) -> dict[str, Any]:
    record = list(service.installation().state.history())[-1]
    assert record["verb"] == "drill"
    return record


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What it proves


def test_everything_is_restored_checked_and_recorded_and_nothing_live_changes(service: Service) -> None:
    metadata = service.back_up()
    told: list[Event] = []
    with still(service):
        done = rehearse(service, emit=told.append)
    assert done.metadata == metadata
    assert (done.checks.databases, done.checks.tables, done.checks.command) == (1, 1, False)
    assert done.checks.entries == metadata.entries
    assert done.content_bytes == metadata.source_bytes
    assert done.restore_seconds is not None
    assert done.restore_seconds > 0
    record = last_record(service)
    assert record["status"] == "success"
    assert record["backup_id"] == metadata.backup_id
    assert record["bytes"] == metadata.source_bytes
    assert record["checks"]["tables"] == 1
    assert set(record["stages"]) == {"open", "extract", "check"}
    assert record["restore_seconds"] == round(done.restore_seconds, 3)
    assert "extract: models models" in Path(record["log"]).read_text()
    assert Path(record["log"]).stat().st_mode & 0o777 == 0o600
    [event] = [event for event in told if isinstance(event, DrillFinished)]
    assert (event.backup_id, event.content_bytes) == (metadata.backup_id, metadata.source_bytes)
    assert derive([record]).drills == {"success": 1, "failed": 0}


def test_the_live_service_may_be_gone_altogether(service: Service) -> None:
    service.back_up()
    for path in (service.root / "service.db", service.root / "models/a.bin"):
        path.unlink()
    assert rehearse(service).checks.databases == 1


def test_an_incremental_is_rehearsed_with_all_that_it_rests_on(service: Service) -> None:
    service.back_up()
    with closing(sqlite3.connect(service.root / "service.db")) as connection:
        connection.execute("INSERT INTO sample (value) VALUES ('more')")
        connection.commit()
    metadata = service.back_up(incremental=True)
    done = rehearse(service)
    assert done.metadata == metadata
    assert done.checks.tables == 1


def test_a_database_with_a_write_ahead_log_is_rehearsed(service: Service) -> None:
    with closing(sqlite3.connect(service.root / "service.db")) as live:
        assert live.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        live.execute("DELETE FROM sample WHERE id > 400")
        live.commit()
        python(
            service,
            "import os, sqlite3; db = sqlite3.connect(os.environ['DATABASE_URL'].removeprefix('sqlite:///'))\n"
            "db.execute('DELETE FROM sample'); db.commit()",
        )
        service.back_up()
        done = rehearse(service)
        assert (done.checks.tables, done.checks.command) == (1, True)
        assert live.execute("SELECT count(*) FROM sample").fetchone() == (400,)


def test_one_component_alone_can_be_rehearsed(service: Service) -> None:
    service.back_up()
    done = rehearse(service, components=["models"])
    assert done.sources == ("models models",)
    assert done.checks.databases == 0
    told: list[Event] = []
    with pytest.raises(UsageError, match="does not hold logs"):
        rehearse(service, components=["logs"], emit=told.append)
    assert told  # as of every run
    assert not any(isinstance(event, DrillFailed) for event in told)


def test_a_restore_can_be_taken_back_after_a_drill(service: Service) -> None:
    service.back_up()
    (service.root / "models/a.bin").write_bytes(b"changed")
    service.restore("latest")
    rehearse(service)
    undo(service.installation(), ignore, confirm=agree)
    assert (service.root / "models/a.bin").read_bytes() == b"changed"


def test_a_damaged_backup_fails_and_that_is_recorded(service: Service) -> None:
    (service.root / "models/a.bin").write_bytes(os.urandom(1 << 20))
    metadata = service.back_up()
    [archive] = (service.backups / "full").glob("*.tar.gz")
    with archive.open("r+b") as file:
        file.seek(1 << 19)
        file.write(b"something else")
    event = failed(service, CorruptBackup, match=".")
    assert event.backup_id == metadata.backup_id
    assert event.hint
    record = last_record(service)
    assert (record["error"], record["message"]) == ("CorruptBackup", event.error)
    assert derive([record]).drills == {"success": 0, "failed": 1}


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"sample": 501}, "has 500 rows in sample, and not 501 as it had"),
        ({"sample": 500, "gone": 0}, "does not have the table gone"),
        ({"sample": -1}, "had -1 rows"),
        ({"sample": "500"}, "how many rows"),
        ({"t" * 201: 1}, "how many rows"),
        ({str(number): 1 for number in range(1001)}, "how many rows"),
        ([], "how many rows"),
    ],
)
def test_rows_that_are_not_those_recorded_fail(
    service: Service, monkeypatch: pytest.MonkeyPatch, rows: Any, match: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_snapshot, "count_rows", lambda reader: rows)
        service.back_up()
    failed(service, CorruptBackup, match=match)
    assert last_record(service)["checks"]["databases"] == 0


def test_a_model_that_was_cut_short_before_it_was_backed_up_fails(service: Service) -> None:
    (service.root / "models/whole.safetensors").write_bytes(WHOLE)
    service.back_up()
    assert rehearse(service).checks.models == 1
    (service.root / "models/cut.safetensors").write_bytes(WHOLE[:-1])
    service.back_up()
    event = failed(service, CorruptBackup, match="models/cut.safetensors is not a whole model file")
    assert "its tensors take 8 bytes, and 7 are there" in event.error


def test_an_empty_model_file_fails(service: Service) -> None:
    (service.root / "models/empty.gguf").touch()
    service.back_up()
    failed(service, CorruptBackup, match="models/empty.gguf is not a whole model file")


def test_a_backup_of_a_stranger_needs_trust(tmp_path: Path, service: Service) -> None:
    service.back_up()
    (tmp_path / "other").mkdir()
    service.environ["XDG_STATE_HOME"] = str(tmp_path / "other")
    failed(service, UntrustedSignature, match="is signed by")
    assert rehearse(service, trust=True).checks.databases == 1


def test_a_host_that_cannot_read_its_backups_says_so(tmp_path: Path, scratch: Path) -> None:
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    service = Service.make(tmp_path, BACKUP_ENCRYPT="true", ENCRYPTION_KEY=recipient)
    service.back_up()
    event = failed(service, KeyMissing, match="no key that decrypts")
    assert "identity" in event.hint
    assert list(scratch.iterdir()) == []


def test_room_is_checked_before_anything_is_written(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.back_up()
    monkeypatch.setattr(_reading, "free_bytes", lambda directory: 1000)
    event = failed(service, NoSpace, match="the drill needs")
    assert "TMPDIR" in event.hint


# The user's command


def test_the_command_works_on_what_was_restored_and_on_nothing_else(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer"
    monkeypatch.setenv("ENCRYPTION_KEY", "a secret that it has no use for")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{service.root}/service.db")
    python(
        service,
        f"""
import json, os, sqlite3, stat
path = os.environ["DATABASE_URL"].removeprefix("sqlite:///")
connection = sqlite3.connect(path)
rows = connection.execute("DELETE FROM sample").rowcount
connection.commit()
open("models/a.bin", "ab").write(b" no more")
json.dump([
    rows, os.getcwd(), path, open("models/d/x").read(), os.environ["HOLDFAST_DRILL"],
    os.environ["DATABASE_URL_MAIN"] == os.environ["DATABASE_URL"], "ENCRYPTION_KEY" in os.environ,
    stat.S_IMODE(os.stat(".").st_mode), stat.S_IMODE(os.stat("..").st_mode),
], open({str(answer)!r}, "w"))
""",
    )
    service.back_up()
    with still(service):
        done = rehearse(service)
    assert done.checks.command
    rows, directory, path, text, flag, same, has_key, *modes = json.loads(answer.read_text())
    assert (rows, text, flag, same, has_key, modes) == (500, "live too", "1", True, False, [0o700, 0o700])
    assert Path(directory).is_relative_to(tmp_path / "scratch")
    assert path == f"{directory}/service.db"
    assert "command" in last_record(service)["stages"]


def test_variables_of_databases_never_lead_to_live_ones(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer"
    live = f"sqlite:///{service.root}/service.db"
    monkeypatch.setenv("EVENTS_URL", live)
    service.environ |= {"EVENTS_URL": live}
    names = ("DATABASE_URL", "EVENTS_URL", "DATABASE_URL_EVENTS", "DATABASE_URL_OLD_ONE")
    program = f"import os, json; json.dump([os.environ[n] for n in {names!r}], open({str(answer)!r}, 'w'))"
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("CREATE TABLE empty (id)")
    (service.root / "holdfast.toml").write_text(
        f"[drill]\ncommand = {json.dumps([sys.executable, '-c', program])}\n"
        f'[database.events]\nenv = "EVENTS_URL"\n[database.old-one]\nurl = "sqlite:///{old}"\n'
    )
    service.back_up()
    assert rehearse(service).checks.databases == 2
    main, events, again, other = json.loads(answer.read_text())
    assert main == ""
    assert events == again
    assert events.endswith("/restored/service.db")
    assert other.endswith("/restored/database/old-one.db")
    rehearse(service, components=["models"])
    assert json.loads(answer.read_text()) == ["", "", "", ""]


def test_a_command_that_fails_fails_the_drill_and_what_it_says_stays_out_of_records(
    service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    python(service, "import sys; print('a secret: 42'); sys.exit(3)")
    service.back_up()
    event = failed(service, HookFailed, match=r"the drill's command .* ended with status 3")
    assert "[drill]" in event.hint
    record = last_record(service)
    assert (record["checks"]["databases"], record["checks"]["command"]) == (1, False)
    out, err = capfd.readouterr()
    assert (out, "a secret: 42" in err) == ("", True)
    assert "a secret: 42" not in json.dumps(record) + event.error
    assert "a secret: 42" not in Path(record["log"]).read_text()


def test_a_command_that_is_not_there_fails_the_drill(service: Service) -> None:
    command(service, "/nowhere/predict")
    service.back_up()
    failed(service, HookFailed, match="the drill's command /nowhere/predict could not be run")


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(
    service: Service, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    command(service, "sh", "-c", f"sleep 600 & echo $! > {started}; wait")
    with (service.root / "holdfast.toml").open("a") as settings:
        settings.write("timeout = 1.0\n")
    service.back_up()
    failed(service, HookFailed, match="took longer than 1 seconds")
    wait_for(lambda: not is_running(int(started.read_text())))


def is_running(pid: int) -> bool:
    """Not a zombie, which where nobody reaps orphans a dead one stays."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
def test_an_interrupted_drill_is_no_failure_and_leaves_nothing(
    service: Service, kind: type[BaseException]
) -> None:
    command(service, "sleep", "600")
    service.back_up()
    told: list[Event] = []

    def emit(event: Event) -> None:
        told.append(event)
        if event == Progressed(0):
            raise kind("interrupted")

    with still(service), pytest.raises(kind):
        rehearse(service, emit=emit)
    assert not any(isinstance(event, DrillFailed) for event in told)
    assert derive([last_record(service)]).drills == {"success": 0, "failed": 0}


def test_backups_can_expire_while_the_command_runs(service: Service) -> None:
    command(service, "true")
    service.back_up()
    repository = service.installation().repository
    seen = []

    def emit(event: Event) -> None:
        if isinstance(event, StageStarted):
            try:
                with repository.expiring():
                    seen.append((event.stage, "free"))
            except LockHeld:
                seen.append((event.stage, "lent"))

    rehearse(service, emit=emit)
    assert set(seen) == {("extract", "lent"), ("check", "free"), ("command", "free")}


def test_backups_are_made_while_a_drill_is_at_work_and_restores_wait_for_it(service: Service) -> None:
    command(service, "true")
    service.back_up()
    made = []

    def emit(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage != "extract":
            assert recover(service.installation(), ignore) is False
            made.append(service.back_up())
            with pytest.raises(LockHeld):
                service.restore("latest")

    rehearse(service, emit=emit)
    assert len(made) == 2
    service.restore("latest")


def test_a_killed_drill_is_swept_by_the_next_command(service: Service, tmp_path: Path, scratch: Path) -> None:
    started = tmp_path / "started"
    command(service, "sh", "-c", f"echo $$ > {started}; exec sleep 600")
    service.back_up()
    with still(service):
        with subprocess.Popen(
            [sys.executable, "-m", "holdfast", "drill"],
            cwd=service.root,
            env=os.environ | service.environ,
            stderr=subprocess.DEVNULL,
        ) as process:
            wait_for(lambda: started.exists() and bool(started.read_text()))
            process.kill()
            process.wait()
        os.kill(int(started.read_text()), signal.SIGKILL)
        [place] = scratch.iterdir()
        assert (place / "restored/models/a.bin").read_bytes() == b"live"
        told: list[Event] = []
        assert recover(service.installation(), told.append)
        assert "cut short before it replaced anything" in str(told)
        assert list(scratch.iterdir()) == []


def test_what_a_drill_has_staged_cannot_be_swapped_in(service: Service) -> None:
    state = service.installation().state
    state.make()
    rehearsal = Transaction.begin(state.service, {}, verb=VERB, subject="latest", clock=service.clock)
    with rehearsal as transaction, pytest.raises(ValueError, match="replaces nothing"):
        transaction.apply([])


# The headers of models

HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"by":"us"}}'
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)


def safetensors(header: object, content: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(content)


def tensor(begin: int, end: int, shape: object = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def gguf(version: int, tensors: int, pairs: int, rest: int, order: str = "little") -> bytes:
    numbers = [version.to_bytes(4, order), tensors.to_bytes(8, order), pairs.to_bytes(8, order)]  # type: ignore[arg-type]
    return b"GGUF" + b"".join(numbers) + bytes(rest)


def watch(name: str, data: bytes, step: int = 1 << 20) -> tuple[int, list[Event]]:
    told: list[Event] = []
    check = ModelCheck(told.append)
    pieces = (memoryview(data)[at : at + step] for at in range(0, len(data), step))
    passed = b"".join(bytes(piece) for piece in check.watch(Entry(name, "file", len(data)), iter(pieces)))
    assert passed == data
    return check.checked, told


@pytest.mark.parametrize("step", [1, 7, 24, 1 << 20])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.safetensors", WHOLE),
        ("M.SafeTensors", safetensors({"b": tensor(4, 9), "a": tensor(0, 4, [1], "F32")}, 9)),
        ("m.safetensors", safetensors({}, 0)),
        ("m.safetensors", safetensors({"a": tensor(0, 3, [2, 3], "F4")}, 3)),
        ("m.safetensors", safetensors({"a": tensor(0, 5, [3], "F2_OF_A_TIME_TO_COME")}, 5)),
        ("m.gguf", gguf(3, 1, 1, 37)),
        ("m.gguf", gguf(2, 0, 0, 0)),
        ("m.gguf", gguf(3, 1, 1, 37, "big")),
        ("m.gguf", b"GGUF\1\0\0\0" + bytes(16)),
        ("m.npy", b"\x93NUMPY\1\0" + bytes(50)),
        ("m.npz", b"PK\3\4" + bytes(50)),
    ],
)
def test_whole_model_files_pass_however_they_come(name: str, data: bytes, step: int) -> None:
    assert watch(name, data, step) == (1, [])


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("m.safetensors", b"", "ends within its header"),
        ("m.safetensors", WHOLE[:7], "ends within its header"),
        ("m.safetensors", WHOLE[:40], "ends within its header"),
        ("m.safetensors", WHOLE + b"x", "its tensors take 8 bytes, and 9 are there"),
        ("m.safetensors", (1 << 63).to_bytes(8, "little") + b"{}", "ends within its header"),
        ("m.safetensors", b"<!DOCTYPE html>" * 100, "ends within its header"),
        ("m.safetensors", safetensors([], 0), "not an object"),
        ("m.safetensors", safetensors({"a": 1}, 0), "has no type, shape and place"),
        ("m.safetensors", safetensors({"a": tensor(1, 2)}, 2), "begins at 1"),
        ("m.safetensors", safetensors({"a": tensor(0, 2), "b": tensor(1, 3)}, 3), "begins at 1"),
        ("m.safetensors", safetensors({"a": tensor(0, 4, [2], "F32")}, 4), "bytes of its type and shape"),
        ("m.safetensors", safetensors({"a": tensor(0, 1, [-1])}, 1), "no sensible shape"),
        ("m.safetensors", safetensors({"a": tensor(0, 1, [1] * 65)}, 1), "no sensible shape"),
        ("m.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000, "recursion|nested|Expecting"),
        ("m.gguf", b"GGUF", "ends within its header"),
        ("m.gguf", b"<!DOCTYPE html>" * 100, "does not begin as GGUF does"),
        ("m.gguf", gguf(9, 0, 0, 0), "version 9"),
        ("m.gguf", gguf(3, 2, 0, 47), "too short for the 2 tensors"),
        ("m.npy", b"PK\3\4", "array of NumPy"),
        ("m.npz", b"\x93NUMPY\1\0", "zip archive"),
    ],
)
def test_what_is_no_whole_model_file_is_refused(name: str, data: bytes, match: str) -> None:
    with pytest.raises(CorruptBackup, match=match):
        watch(name, data)


def test_a_header_too_long_to_be_held_is_told_and_not_judged() -> None:
    length = (8 << 20) + 1
    checked, told = watch("m.safetensors", length.to_bytes(8, "little") + b" " * length)
    assert checked == 0
    assert "its header is not checked" in str(told)


def test_other_files_pass_unseen() -> None:
    assert watch("model.safetensors.index.json", b"{}") == (0, [])


def test_clocks_of_the_history_are_those_of_the_installation(service: Service) -> None:
    service.back_up()
    service.clock = Clock()
    rehearse(service)
    assert last_record(service)["time"] == "2024-01-01T02:00:00"
