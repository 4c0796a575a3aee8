"""Reading a MySQL or MariaDB database for a backup."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DatabaseBusy, DatabaseError, SourceChanged, SourceMissing
from holdfast.events import Event, Warned, ignore
from holdfast.sources.mysql import MySqlSource
from sources.mysql_restores import back_up, long_after, stage
from sources.mysql_server import PASSWORD, Server, description, make_everything, running_server
from sources.mysql_server import server as server

DATABASE = "source"
USER = "limited"


@pytest.fixture(autouse=True)
def _clean(server: Server) -> Iterator[None]:
    server.drop(DATABASE)
    yield
    server.run(f"DROP USER IF EXISTS {USER}@localhost")
    server.drop(*server.schemas(f"^{DATABASE}"))


def make_user(server: Server, *grants: str) -> None:
    password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    server.run(f"CREATE OR REPLACE USER {USER}@localhost IDENTIFIED BY '{password}'")
    server.run(*(f"GRANT {grant} TO {USER}@localhost" for grant in grants))


def source(server: Server, **options: str | bool) -> MySqlSource:
    return MySqlSource("main", server.url(DATABASE, **options), timeout=2, clock=long_after)  # type: ignore[arg-type]


def make_large(server: Server, rows: int = 200_000) -> None:
    server.run(f"CREATE DATABASE {DATABASE}")
    server.run(
        "CREATE TABLE large (id INT PRIMARY KEY, text CHAR(200))",
        f"INSERT INTO large SELECT seq, REPEAT('x', 200) FROM seq_1_to_{rows}",
        database=DATABASE,
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_its_entry_is_a_stream_under_a_name_of_its_own(server: Server) -> None:
    make_everything(server, DATABASE)
    (item,) = source(server).scan(ignore)
    assert item.entry.path == "database/main.dump"
    assert item.entry.kind == "file"
    assert item.entry.mode == 0o600
    assert item.entry.racy
    _, content = item.open()
    assert content is not None
    assert content.size is None
    assert content.stream is not None
    content.stream.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_the_moment_tells_what_a_restore_is_checked_by(server: Server, tcp: bool) -> None:
    make_everything(server, DATABASE)
    backup = back_up(server.url(DATABASE, tcp=tcp))
    moment = backup.moment
    assert moment["flavour"] == "MariaDB"
    assert moment["charset"] == "utf8mb4"
    assert moment["collation"] == "utf8mb4_general_ci"
    rows = {
        "parent": 2,
        "child": 2,
        "audit": 0,
        "kinds": 6,
        "naïve `table`; é": 1,
        "measured": 3,
        "numbered": 2,
        "versioned": 2,
        "empty": 0,
        "latin": 0,
    }
    assert moment["rows"] == rows
    assert moment["binlog"]["file"].startswith("binlog.")
    assert moment["binlog"]["position"] > 0
    assert moment["gtid"].startswith("0-1-")


def test_the_same_rows_give_the_same_bytes_and_one_row_more_changes_few(server: Server) -> None:
    make_large(server, 20_000)
    one, other = (back_up(server.url(DATABASE)).content for _ in range(2))
    assert one == other
    server.run("UPDATE large SET text = REPEAT('y', 200) WHERE id = 9000", database=DATABASE)
    changed = back_up(server.url(DATABASE)).content
    lines, old = changed.splitlines(), one.splitlines()
    assert len(lines) == len(old)
    assert sum(a != b for a, b in zip(lines, old, strict=True)) <= 3  # the row, and two lines of positions


def test_a_dump_names_no_database(server: Server) -> None:
    make_everything(server, DATABASE)
    content = back_up(server.url(DATABASE)).content
    assert b"\nUSE " not in content
    assert b"CREATE DATABASE" not in content


def test_a_dump_under_write_load_is_one_moment(server: Server) -> None:
    make_large(server, 50_000)
    server.run(
        "CREATE TABLE one (id INT PRIMARY KEY, n INT)",
        "CREATE TABLE two (id INT PRIMARY KEY, n INT)",
        "CREATE TABLE zz_pairs (n INT)",
        "INSERT INTO one VALUES (1, 0)",
        "INSERT INTO two VALUES (1, 0)",
        database=DATABASE,
    )
    stop = threading.Event()
    written = []

    def write() -> None:
        with contextlib.closing(server.connect(DATABASE)) as connection, connection.cursor() as cursor:
            number = 0
            while not stop.is_set():
                number += 1
                cursor.execute("BEGIN")
                for table in ("one", "two"):
                    cursor.execute(f"UPDATE {table} SET n = %s", (number,))
                cursor.execute("INSERT INTO zz_pairs VALUES (%s)", (number,))
                cursor.execute("COMMIT")
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(written) > 10)
        backup = back_up(server.url(DATABASE))
        seen = len(written)
        wait_until(lambda: len(written) > seen)
    finally:
        stop.set()
        writer.join()
    swap = stage(backup, server.url(DATABASE))
    swap.apply()
    ((one, two, pairs),) = server.rows(
        "SELECT (SELECT n FROM one), (SELECT n FROM two), (SELECT COUNT(*) FROM zz_pairs)", DATABASE
    )
    assert one == two == pairs
    assert 10 <= one < len(written)
    swap.discard()


def test_no_password_shows_in_arguments_errors_or_environment(server: Server, tmp_path: Path) -> None:
    make_large(server)
    (item,) = source(server).scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    next(content.stream)
    try:
        told = b""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"mariadb-dump" in (process / "cmdline").read_bytes():
                    told += (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert b"mariadb-dump" in told
        assert PASSWORD.encode() not in told
        assert b'p"a' not in told
    finally:
        content.stream.close()


def test_a_wrong_password_is_told_without_it(server: Server) -> None:
    server.run(f"CREATE DATABASE {DATABASE}")
    url = server.url(DATABASE).set(password="wrong secret")
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*Access denied") as raised:
        back_up(url)
    assert "password" in raised.value.hint
    assert "DATABASE_URL" not in raised.value.hint  # Its variable may be another one.
    assert "wrong secret" not in str(raised.value)


def test_an_unknown_database_is_missing(server: Server) -> None:
    with pytest.raises(SourceMissing, match=r"^Database backup failed: .* is not there"):
        back_up(server.url(DATABASE))


def test_a_server_that_is_down_is_an_error(server: Server) -> None:
    url = server.url(DATABASE, tcp=True).set(port=1)
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*cannot be reached") as raised:
        back_up(url)
    assert "running" in raised.value.hint


def test_a_dump_whose_program_is_killed_is_an_error(server: Server) -> None:
    make_large(server)
    (item,) = source(server).scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    next(content.stream)
    told = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    children = [line.split() for line in told.splitlines() if "mariadb-dump" in line or "mysqldump" in line]
    ours = [int(pid) for pid, parent, *_ in children if int(parent) == os.getpid()]
    assert ours
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*killed by signal 9"):
        list(content.stream)


def test_a_connection_that_is_lost_in_the_middle_is_an_error(server: Server) -> None:
    make_large(server)
    (item,) = source(server).scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    next(content.stream)
    for (number,) in server.rows(
        f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{DATABASE}' AND INFO LIKE 'SELECT%'"
    ):
        server.run(f"KILL {number}")
    with pytest.raises(DatabaseError, match=r"^Database backup failed: "):
        list(content.stream)


def test_a_server_that_is_killed_in_the_middle_is_an_error() -> None:
    with running_server() as server:
        make_large(server)
        (item,) = source(server).scan(ignore)
        _, content = item.open()
        assert content is not None
        assert content.stream is not None
        next(content.stream)
        server.process.kill()
        server.process.wait()
        with pytest.raises(DatabaseError, match=r"^Database backup failed: "):
            list(content.stream)


def test_a_table_that_is_altered_meanwhile_is_noticed(server: Server) -> None:
    make_large(server, 1000)
    (item,) = source(server).scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    server.run("CREATE TABLE later (id INT)", database=DATABASE)
    with pytest.raises(SourceChanged):
        list(content.stream)


def test_a_table_that_stays_locked_is_told_within_the_timeout(server: Server) -> None:
    make_large(server, 10)
    with contextlib.closing(server.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES large WRITE")
        (item,) = source(server).scan(ignore)
        with pytest.raises(DatabaseBusy, match=r"^Database backup failed: "):
            item.open()


def test_tables_without_transactions_are_told(server: Server) -> None:
    make_large(server, 10)
    server.run("CREATE TABLE old (id INT) ENGINE=MyISAM", database=DATABASE)
    events: list[Event] = []
    back_up(server.url(DATABASE), events.append)
    assert [event.message for event in events if isinstance(event, Warned) and ": old" in event.message]
    assert [
        finding.detail
        for finding in source(server).check()
        if finding.state == "warning" and ": old" in finding.detail
    ]


def test_what_a_user_may_not_see_is_an_error_not_a_gap(server: Server) -> None:
    make_everything(server, DATABASE)
    make_user(server, f"SELECT, SHOW VIEW ON {DATABASE}.*")
    with pytest.raises(DatabaseError, match="lacks TRIGGER, EVENT") as raised:
        back_up(server.url(DATABASE, user=USER))
    assert raised.value.hint.startswith("GRANT TRIGGER, EVENT ON")
    findings = list(source(server, user=USER).check())
    assert [finding for finding in findings if finding.state == "FAILED" and "TRIGGER" in finding.detail]


def test_a_user_with_the_rights_to_read_makes_a_whole_backup(server: Server) -> None:
    make_everything(server, DATABASE)
    old = description(server, DATABASE)
    # EXECUTE: a view that runs as its invoker calls a function.
    make_user(server, f"SELECT, SHOW VIEW, TRIGGER, EVENT, EXECUTE ON {DATABASE}.*", "SELECT ON mysql.proc")
    events: list[Event] = []
    backup = back_up(server.url(DATABASE, user=USER), events.append)
    assert not [event for event in events if isinstance(event, Warned)]
    server.drop(DATABASE)
    swap = stage(backup, server.url(DATABASE), create_database=True)
    swap.apply()
    assert description(server, DATABASE) == old
    swap.discard()
    findings = list(source(server, user=USER).check())
    assert not [finding for finding in findings if finding.state == "FAILED"]
    assert [finding for finding in findings if "a restore would fail" in finding.detail]


def test_hidden_routines_are_told(server: Server) -> None:
    make_large(server, 10)
    make_user(server, f"SELECT, SHOW VIEW, TRIGGER, EVENT ON {DATABASE}.*")
    events: list[Event] = []
    back_up(server.url(DATABASE, user=USER), events.append)
    assert [event for event in events if isinstance(event, Warned) and "mysql.proc" in event.message]


def test_a_check_of_a_sound_set_up_is_all_well(server: Server) -> None:
    make_everything(server, DATABASE)
    findings = list(source(server).check())
    assert {finding.state for finding in findings} == {"ok"}
    assert any("MariaDB" in finding.detail for finding in findings)


def test_without_its_driver_the_extra_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ConfigError) as raised:
        source(server)
    assert "holdfast[mysql]" in raised.value.hint


def test_without_the_program_its_package_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make_large(server, 10)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DatabaseError, match=r"mariadb-dump is needed") as raised:
        list(source(server).scan(ignore))
    assert "mariadb-client" in raised.value.hint


def test_a_program_that_does_not_fit_the_server_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large(server, 10)
    program = tmp_path / "mysqldump"
    program.write_text(
        "#!/bin/sh\necho 'mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)'\n"
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatabaseError, match=r"is MySQL's \(8\.0\.36\), and the server is MariaDB"):
        list(source(server).scan(ignore))


def test_a_program_that_ends_early_without_an_error_is_noticed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large(server, 10)
    real = shutil.which("mariadb-dump")
    program = tmp_path / "mariadb-dump"
    program.write_text(f'#!/bin/sh\n{real} "$@" | head -c 1500\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DatabaseError, match=r"^Database backup failed: the dump .* is not whole"):
        back_up(server.url(DATABASE))


def test_an_option_file_of_the_user_changes_no_dump(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large(server, 10)
    (tmp_path / ".my.cnf").write_text(
        "[client]\nuser=nobody\n[mariadb-dump]\nno-data\nignore-table=source.large\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert back_up(server.url(DATABASE)).moment["rows"] == {"large": 10}


def test_an_unknown_option_about_encryption_is_refused(server: Server) -> None:
    url = server.url(DATABASE).update_query_dict({"ssl_sure": "1"})
    with pytest.raises(ConfigError, match="ssl_sure"):
        back_up(url)


@pytest.mark.parametrize(
    "options",
    [
        {"ssl_ca": "ca.pem"},
        {"ssl_ca": "ca.pem", "ssl_check_hostname": "false"},
        {"ssl_ca": "ca.pem", "ssl_mode": "VERIFY_IDENTITY"},
        {"ssl_mode": "REQUIRED"},
        {"ssl": "true"},
        {"ssl_disabled": "true"},
    ],
)
def test_encryption_is_as_the_url_asks(server: Server, options: dict[str, str]) -> None:
    make_large(server, 10)
    user = f"{USER}@'127.0.0.1'"
    demand = "" if "ssl_disabled" in options else "REQUIRE SSL"
    password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    server.run(
        f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{password}' {demand}", f"GRANT ALL ON *.* TO {user}"
    )
    files = {
        key: str(server.directory / value) if key == "ssl_ca" else value for key, value in options.items()
    }
    try:
        url = server.url(DATABASE, tcp=True, user=USER).update_query_dict(files)
        assert back_up(url).moment["rows"] == {"large": 10}
        if "ssl_ca" in options:
            with pytest.raises(DatabaseError, match=r"^Database backup failed: "):
                back_up(url.update_query_dict({"ssl_ca": str(server.directory / "other.pem")}))
    finally:
        server.run(f"DROP USER {user}")


def test_a_url_may_say_mysql(server: Server) -> None:
    make_large(server, 10)
    made = MySqlSource("main", server.url(DATABASE, dialect="mysql"), timeout=2, clock=long_after)
    assert made.record().kind == "mysql"
    (item,) = made.scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    assert b"".join(bytes(piece) for piece in content.stream).rstrip().endswith(b"-- Dump completed")
