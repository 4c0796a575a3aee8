from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import DatabaseBusy, DatabaseError, NoSpace, SourceError, SourceMissing, SourceUnreadable
from holdfast.sources.sqlite import _connection as _sqlite_connection
from holdfast.sources.sqlite import _snapshot
from holdfast.sources.sqlite._snapshot import take_snapshot
from sources.sqlite_files import client, committed, dump, make, names, one, stage, wait_for_more, writer

MODES = pytest.mark.parametrize("wal", [False, True], ids=["rollback", "wal"])
AS_NOBODY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where snapshots are made."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def snapshot_to(path: Path, live: Path, *, timeout: float = 10.0) -> Path:
    with take_snapshot(live, timeout=timeout) as snapshot:
        path.write_bytes(b"".join(bytes(piece) for piece in snapshot.pieces()))
        assert path.stat().st_size == snapshot.size
        assert b"".join(bytes(piece) for piece in snapshot.pieces()) == path.read_bytes(), "a second time"
    return path


@MODES
def test_it_holds_what_the_database_holds_and_nothing_is_left(
    tmp_path: Path, scratch: Path, wal: bool
) -> None:
    live = make(tmp_path / "data/live.db", wal=wal)
    copy = snapshot_to(tmp_path / "copy.db", live)
    assert dump(copy) == dump(live)
    assert one(copy, "PRAGMA journal_mode") == ("wal" if wal else "delete")
    assert names(live.parent) == ["live.db"]
    assert names(scratch) == []


def test_rows_that_are_only_in_the_log_are_in_it_and_the_log_stays(tmp_path: Path) -> None:
    live = make(tmp_path / "data/live.db", wal=True)
    with client(live) as other:
        other("PRAGMA wal_autocheckpoint=0")
        other("INSERT INTO ledger VALUES (7)")
        log = Path(f"{live}-wal").read_bytes()
        assert log
        assert one(snapshot_to(tmp_path / "copy.db", live), "SELECT number FROM ledger") == 7
        assert Path(f"{live}-wal").read_bytes() == log
        assert names(live.parent) == ["live.db", "live.db-shm", "live.db-wal"]


def test_a_log_that_a_crash_left_is_read_and_stays(tmp_path: Path) -> None:
    live = make(tmp_path / "data/live.db", wal=True)
    with client(live) as other:
        other("INSERT INTO ledger VALUES (7)")
    before = Path(f"{live}-wal").read_bytes()
    assert one(snapshot_to(tmp_path / "copy.db", live), "SELECT number FROM ledger") == 7
    assert Path(f"{live}-wal").read_bytes() == before


def test_a_transaction_that_a_crash_left_half_done_is_not_in_it(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db", rows=2000)
    before = dump(live)
    with client(live) as other:
        other("PRAGMA cache_size=5")
        other("BEGIN IMMEDIATE")
        other("UPDATE item SET text = 'half ' || text")
    assert Path(f"{live}-journal").stat().st_size
    assert dump(snapshot_to(tmp_path / "copy.db", live)) == before


@MODES
def test_it_is_one_moment_while_others_write(tmp_path: Path, wal: bool) -> None:
    live, log = make(tmp_path / "live.db", rows=3000, wal=wal), tmp_path / "writer.log"
    with writer(live, log):
        for number in range(5):
            before = max(committed(log))
            copy = snapshot_to(tmp_path / f"{number}.db", live)
            assert one(copy, "SELECT sum(amount) FROM account") == 1000
            assert one(copy, "SELECT 1000 - amount FROM account WHERE id = 1") == one(
                copy, "SELECT count(*) FROM ledger"
            )
            assert one(copy, "SELECT max(number) FROM ledger") >= before
            wait_for_more(log)


def test_a_large_database_that_others_write_to_all_the_time_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_snapshot, "HELD_BYTES", 0)
    monkeypatch.setattr(_sqlite_connection, "STEP_BYTES", 8192)
    live, log = make(tmp_path / "live.db", rows=3000), tmp_path / "writer.log"
    with writer(live, log):
        before = len(committed(log))
        copy = snapshot_to(tmp_path / "copy.db", live)
        assert len(committed(log)) > before, "the writer came through meanwhile"
    assert one(copy, "SELECT sum(amount) FROM account") == 1000
    assert dump(copy)


def test_a_large_database_that_nobody_writes_to_is_copied_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_snapshot, "HELD_BYTES", 0)
    monkeypatch.setattr(_sqlite_connection, "STEP_BYTES", 8192)
    live = make(tmp_path / "live.db")
    assert dump(snapshot_to(tmp_path / "copy.db", live)) == dump(live)


def test_a_locked_database_is_an_error_after_the_timeout(tmp_path: Path, scratch: Path) -> None:
    live = make(tmp_path / "live.db")
    with client(live) as other:
        other("BEGIN EXCLUSIVE")
        with pytest.raises(
            DatabaseBusy,
            match=r"^Database backup failed: .*live\.db is locked by another process.* 0\.2 seconds",
        ) as caught:
            take_snapshot(live, timeout=0.2)
        assert "database_timeout" in caught.value.hint
        other("COMMIT")
        take_snapshot(live, timeout=0.2).close()
    assert names(scratch) == []


def test_a_database_that_is_locked_for_a_while_is_waited_for(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    script = "import sqlite3, sys, time; d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    script += "d.execute('BEGIN EXCLUSIVE'); print(1, flush=True); time.sleep(0.3); d.execute('COMMIT')"
    with subprocess.Popen([sys.executable, "-c", script, str(live)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        take_snapshot(live, timeout=30).close()


def test_a_missing_database_is_an_error_and_is_not_made(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(SourceMissing, match=r"^Database backup failed: .*live\.db is not there"):
        take_snapshot(tmp_path / "live.db", timeout=1)
    assert names(tmp_path) == ["scratch"]
    assert names(scratch) == []


@pytest.mark.parametrize(
    "content", [os.urandom(8192), b"SQLite format 3", b"text\n" * 2000], ids=["encrypted", "cut", "text"]
)
def test_what_is_no_database_is_an_error_that_speaks_of_encryption(tmp_path: Path, content: bytes) -> None:
    live = tmp_path / "live.db"
    live.write_bytes(content)
    with pytest.raises(
        DatabaseError, match=r"^Database backup failed: .*not a SQLite database, or it is encrypted"
    ):
        take_snapshot(live, timeout=1)
    assert live.read_bytes() == content


def test_an_empty_file_is_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / "live.db").touch()
    assert dump(snapshot_to(tmp_path / "copy.db", tmp_path / "live.db")) == ["BEGIN TRANSACTION;", "COMMIT;"]


@MODES
def test_damage_is_an_error(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", rows=2000, wal=wal)
    sound = live.read_bytes()
    for page in (2, 30):
        live.write_bytes(sound[: page * 4096] + b"\xff" * 600 + sound[page * 4096 + 600 :])
        with pytest.raises(
            DatabaseError, match=r"^Database backup failed: .*live\.db is damaged: "
        ) as caught:
            snapshot_to(tmp_path / "copy.db", live)
        assert "recover" in caught.value.hint
    live.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*live\.db is damaged: "):
        snapshot_to(tmp_path / "copy.db", live)


def test_rows_that_break_a_rule_of_their_table_are_no_damage(tmp_path: Path) -> None:
    live = tmp_path / "live.db"
    with closing(sqlite3.connect(live)) as database:
        database.execute("CREATE TABLE strict (number INTEGER CHECK (number < 5))")
        database.execute("PRAGMA ignore_check_constraints=ON")
        database.executemany("INSERT INTO strict VALUES (?)", ((number,) for number in range(200)))
        database.commit()
    with take_snapshot(live, timeout=1) as snapshot:
        assert snapshot.facts.rows == {"strict": 200}


def test_functions_and_collations_of_the_service_are_not_needed(tmp_path: Path) -> None:
    live = tmp_path / "live.db"
    with closing(sqlite3.connect(live)) as database:
        database.create_collation("backwards", lambda one, other: (one < other) - (one > other))
        database.create_function("double", 1, lambda number: number * 2, deterministic=True)
        database.execute("CREATE TABLE word (text TEXT COLLATE backwards PRIMARY KEY) WITHOUT ROWID")
        database.execute(
            "CREATE TABLE pair (one INT CHECK (double(one) > 1), two INT AS (double(one)) NOT NULL)"
        )
        database.execute("CREATE INDEX pair_double ON pair (double(one))")
        database.executemany("INSERT INTO word VALUES (?)", (("a",), ("b",), ("c",)))
        database.executemany("INSERT INTO pair (one) VALUES (?)", ((1,), (2,)))
        database.commit()
    copy = snapshot_to(tmp_path / "copy.db", live)
    stage(copy, tmp_path / "restored.db").apply()
    with take_snapshot(tmp_path / "restored.db", timeout=1) as snapshot:
        assert snapshot.facts.rows == {"pair": 2, "word": 3}


def test_facts(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db", rows=300, page_size=1024)
    with closing(sqlite3.connect(live)) as database:
        database.execute("PRAGMA user_version=42")
        database.execute('CREATE TABLE "a ""quoted"" one" (x)')
        database.execute("CREATE VIRTUAL TABLE search USING fts4 (text)")
        database.execute("CREATE VIEW few AS SELECT * FROM item LIMIT 3")
        database.commit()
    with take_snapshot(live, timeout=1) as snapshot:
        assert snapshot.facts.page_size == 1024
        assert snapshot.facts.pages * 1024 == snapshot.size == live.stat().st_size
        assert snapshot.facts.user_version == 42
        rows = snapshot.facts.rows
    assert {name: rows[name] for name in rows if not name.startswith("search_")} == {
        'a "quoted" one': 0,
        "account": 2,
        "item": 300,
        "ledger": 0,
    }


def test_who_has_enough_of_it_does_not_wait_for_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the check is between two statements as it is called off: SQLite interrupts those that run."""
    between, closing_ = threading.Event(), threading.Event()

    def check(reader: sqlite3.Connection, *, deep: bool) -> None:
        between.set()
        closing_.wait(10)
        time.sleep(0.05)
        reader.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")

    monkeypatch.setattr(_snapshot, "find_damage", check)
    snapshot = take_snapshot(make(tmp_path / "live.db", wal=False), timeout=10)
    assert between.wait(10)
    closing_.set()
    closer = threading.Thread(target=snapshot.close, daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()


@pytest.mark.parametrize(
    "name", ["100% of?that#.db", "mode=memory&x.db", "späß.db", "\udcff\udcfe.db", " a b'\".db"]
)
def test_names_that_a_uri_would_take_apart(tmp_path: Path, name: str) -> None:
    if name.startswith("\udcff") and sys.platform == "darwin":
        pytest.skip("macOS has no such names")
    live = make(tmp_path / "plain.db").rename(tmp_path / name)
    with take_snapshot(live, timeout=1) as snapshot:
        assert snapshot.facts.rows["item"] == 200
    assert names(tmp_path) == sorted(["scratch", name])


def test_no_room_is_an_error_that_names_the_directory_and_tmpdir(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make(tmp_path / "live.db")
    monkeypatch.setattr(_snapshot, "free_bytes", lambda directory: live.stat().st_size - 1)
    with pytest.raises(NoSpace, match=str(scratch)) as caught:
        take_snapshot(live, timeout=1)
    assert "TMPDIR" in caught.value.hint
    assert names(scratch) == []


def test_locks_of_this_process_outlast_a_snapshot(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    with closing(sqlite3.connect(live, isolation_level=None)) as own, client(live) as other:
        own.execute("BEGIN IMMEDIATE")
        take_snapshot(live, timeout=1).close()
        assert "SQLITE_BUSY" in other("BEGIN IMMEDIATE")


_TAKE = """
import os, signal, sys
from pathlib import Path
from holdfast.sources.sqlite import _snapshot
lines = 0
def trace(frame, event, argument):
    global lines
    if frame.f_code.co_filename != _snapshot.__file__:
        return None
    lines += event == "line"
    if lines == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
for piece in _snapshot.take_snapshot(Path(sys.argv[1]), timeout=5).pieces():
    pass
print("done")
"""


def test_a_kill_leaves_no_byte_of_the_database_behind(tmp_path: Path, scratch: Path) -> None:
    live = make(tmp_path / "live.db")
    for line in range(1, 400, 8):
        command = [sys.executable, "-c", _TAKE, str(live), str(line)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        assert sum(path.stat().st_size for path in scratch.iterdir()) == 0
        if done.stdout:
            break
        assert done.returncode == -9
    else:
        pytest.fail("it never came to an end")
    assert line > 60
    assert len(names(scratch)) <= 1, "a name is left only by a kill in the instant before it is removed"


_AS_NOBODY = """
import os, sys
from pathlib import Path
from holdfast.errors import HoldfastError
from holdfast.sources.sqlite._snapshot import take_snapshot
os.setgid(65534)
os.setuid(65534)
try:
    print(take_snapshot(Path(sys.argv[1]), timeout=1).facts.rows["item"])
except HoldfastError as error:
    print(type(error).__name__, error)
"""


def as_nobody(live: Path) -> str:
    for directory in (live.parent, *live.parent.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(live)],
        env={**os.environ, "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@AS_NOBODY
@MODES
def test_who_may_only_read_can_take_one(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "data/live.db", wal=wal)
    live.chmod(0o644)
    assert as_nobody(live) == "200"
    assert names(live.parent) == ["live.db"]
    with client(live) as other:
        other("INSERT INTO ledger VALUES (7)")
        assert as_nobody(live) == "200"


@AS_NOBODY
def test_who_may_not_read_is_told_so(tmp_path: Path) -> None:
    live = make(tmp_path / "data/live.db")
    live.chmod(0o600)
    assert as_nobody(live).startswith(SourceUnreadable.__name__)


# Python's iterdump does not take an apostrophe in a name.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0'", exclude_categories=["Cs"]), max_size=8)
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300),
    st.binary(max_size=3000),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tables=st.lists(
        st.tuples(NAMES, st.lists(st.tuples(VALUES, VALUES), max_size=12), st.booleans()),
        max_size=4,
        unique_by=lambda table: table[0].lower(),
    ),
    page_size=st.sampled_from([512, 4096, 65536]),
    wal=st.booleans(),
    encoding=st.sampled_from(["UTF-8", "UTF-16le"]),
)
def test_whatever_is_backed_up_and_restored_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    tables: list[tuple[str, list[tuple[object, object]], bool]],
    page_size: int,
    wal: bool,
    encoding: str,
) -> None:
    directory = tmp_path_factory.mktemp("property")
    live = directory / "live.db"
    with closing(sqlite3.connect(live, isolation_level=None)) as database:
        for setting in (f"page_size={page_size}", f"encoding='{encoding}'", "synchronous=OFF"):
            database.execute(f"PRAGMA {setting}")
        database.execute(f"PRAGMA journal_mode={'wal' if wal else 'delete'}").fetchall()
        for number, (name, rows, indexed) in enumerate(tables):
            quoted = '"t_' + name.replace('"', '""') + '"'
            database.execute(f"CREATE TABLE {quoted} (one, two)")
            if indexed:
                database.execute(f"CREATE INDEX i{number} ON {quoted} (two, one)")
            database.executemany(f"INSERT INTO {quoted} VALUES (?, ?)", rows)
        expected = dump(live)
        copy = snapshot_to(directory / "copy.db", live)
    target = make(directory / "target.db", wal=not wal, rows=3)
    swap = stage(copy, target)
    swap.apply()
    assert dump(target) == expected
    swap.discard()


def test_every_error_is_one_of_a_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^Database backup failed"):
        take_snapshot(tmp_path, timeout=1)
