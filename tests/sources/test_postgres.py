"""A PostgreSQL database is read as of one moment, or the backup fails and says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, make_url

from conformance.source import drain
from holdfast.clock import system_clock
from holdfast.errors import ConfigError, DatabaseError, SourceMissing
from holdfast.events import ignore
from holdfast.model import Finding
from holdfast.sources.base import Content
from holdfast.sources.postgres import PostgresSource
from sources.postgres_restores import backup
from sources.postgres_server import (
    PASSWORD,
    PostgresServer,
    database_fixture,
    newer,
    own_server,
    postgres_fixture,
    select_nothing,
)

__all__ = ["database_fixture", "postgres_fixture"]


def source_of(url: URL, *, timeout: float = 20) -> PostgresSource:
    return PostgresSource("main", url, timeout=timeout, clock=system_clock)


def opened(url: URL, *, timeout: float = 20) -> Content:
    [item] = source_of(url, timeout=timeout).scan(ignore)
    _, content = item.open()
    assert content is not None
    return content


def fill(server: PostgresServer, database: str, rows: int = 300_000) -> None:
    """More than a pipe holds, so that a dump cannot end before it was read."""
    server.run(
        database,
        f"CREATE TABLE big AS SELECT n AS id, repeat(md5(n::text), 4) AS text FROM generate_series(1, {rows}) n",
    )


def test_the_moment_says_which_state_of_which_server_it_is(postgres: PostgresServer, database: str) -> None:
    postgres.run(
        database,
        'CREATE SCHEMA "Größe"; CREATE TABLE "Größe"."A.b" (id int); INSERT INTO "Größe"."A.b" VALUES (1), (2);'
        "CREATE TABLE event (day date) PARTITION BY RANGE (day);"
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');"
        "INSERT INTO event VALUES ('2024-02-02'); CREATE VIEW v AS SELECT 1; CREATE EXTENSION pg_trgm",
    )
    before = postgres.run(database, "SELECT pg_current_wal_lsn()")[0][0]
    moment = backup(postgres.url(database))[2]
    after = postgres.run(database, "SELECT pg_current_wal_lsn()")[0][0]
    assert moment["rows"] == {"Größe": {"A.b": 2}, "public": {"event_1": 1}}
    assert moment["server"].startswith(f"{moment['major']}.")
    assert postgres.run(database, "SELECT %s::pg_lsn BETWEEN %s AND %s", moment["lsn"], before, after) == [
        (True,)
    ]
    assert moment["database"]["owner"] == "postgres"
    assert moment["database"]["encoding"] == "UTF8"


def test_the_rows_are_counted_in_the_snapshot_of_the_dump(postgres: PostgresServer, database: str) -> None:
    fill(postgres, database)
    source = source_of(postgres.url(database))
    [item] = source.scan(ignore)
    _, content = item.open()
    assert content is not None
    postgres.run(database, "DELETE FROM big WHERE id > 10; CREATE TABLE later (id int)")
    data = drain(content)
    assert source.record().moment["rows"] == {"public": {"big": 300_000}}
    assert b"later" not in data


def test_a_truncate_waits_for_the_dump(postgres: PostgresServer, database: str) -> None:
    fill(postgres, database, rows=1000)
    content = opened(postgres.url(database))
    with pytest.raises(psycopg.errors.LockNotAvailable):
        postgres.run(database, "SET lock_timeout = 50; TRUNCATE big")
    drain(content)
    postgres.run(database, "TRUNCATE big")


def test_the_dump_is_read_as_it_comes(postgres: PostgresServer, database: str) -> None:
    fill(postgres, database)
    content = opened(postgres.url(database))
    assert content.size is None
    assert content.stream is not None
    with closing(content.stream) as stream:
        sizes = [len(piece) for piece in stream]
    assert len(sizes) > 20
    assert max(sizes) <= 1 << 20
    assert sum(sizes) > 30_000_000


def test_nothing_is_left_behind_when_a_dump_is_given_up(postgres: PostgresServer, database: str) -> None:
    fill(postgres, database)
    content = opened(postgres.url(database))
    assert content.stream is not None
    with closing(content.stream) as stream:
        next(stream)
    assert sessions(postgres, database) == []


def sessions(server: PostgresServer, database: str) -> list[Any]:
    for _ in range(500):
        found = server.run(
            "postgres", "SELECT application_name FROM pg_stat_activity WHERE datname = %s", database
        )
        if not found:
            break
        select_nothing(0.01)
    return found


@pytest.mark.parametrize("way", ["pg_dump killed", "connection ended", "our connection ended"])
def test_a_dump_that_breaks_off_is_an_error(postgres: PostgresServer, database: str, way: str) -> None:
    fill(postgres, database)
    content = opened(postgres.url(database))
    assert content.stream is not None
    with closing(content.stream) as stream:
        next(stream)
        if way == "pg_dump killed":
            os.kill(child_named("pg_dump"), signal.SIGKILL)
        else:
            ours = way == "our connection ended"
            postgres.run(
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s "
                "AND (query LIKE 'COPY%%') <> %s",
                database,
                ours,
            )
        with pytest.raises(DatabaseError, match=r"^Database backup failed"):
            list(stream)


def child_named(name: str) -> int:
    for _ in range(500):
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    status = Path("/proc", pid, "stat").read_text()
                except OSError:
                    continue
                if f"({name})" in status and status.rpartition(")")[2].split()[1] == str(os.getpid()):
                    return int(pid)
        select_nothing(0.01)
    raise AssertionError(f"no {name} runs")


def test_a_server_that_dies_is_an_error() -> None:
    with own_server() as server:
        server.create("doomed")
        fill(server, "doomed")
        content = opened(server.url("doomed"))
        assert content.stream is not None
        with closing(content.stream) as stream:
            next(stream)
            server.stop()
            with pytest.raises(DatabaseError, match=r"^Database backup failed"):
                list(stream)
        with pytest.raises(DatabaseError, match=r"^Database backup failed") as caught:
            list(source_of(server.url("doomed")).scan(ignore))
        assert not isinstance(caught.value, SourceMissing)
        assert "server runs" in caught.value.hint


def test_an_unknown_database_is_missing(postgres: PostgresServer) -> None:
    with pytest.raises(SourceMissing, match=r"^Database backup failed: postgresql://.*no_such_thing"):
        list(source_of(postgres.url("no_such_thing")).scan(ignore))


def test_a_wrong_password_is_told_without_it(postgres: PostgresServer, database: str) -> None:
    url = postgres.url(database, password="entirely wrong")
    with pytest.raises(DatabaseError, match=r"^Database backup failed") as caught:
        list(source_of(url).scan(ignore))
    assert "entirely wrong" not in f"{caught.value} {caught.value.hint}"
    assert "password" in caught.value.hint


def test_the_password_is_in_no_argument_and_no_record(postgres: PostgresServer, database: str) -> None:
    fill(postgres, database)
    url = postgres.url(database, password=PASSWORD)
    source = source_of(url)
    [item] = source.scan(ignore)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    with closing(content.stream) as stream:
        next(stream)
        next(stream)
        arguments = Path(f"/proc/{child_named('pg_dump')}/cmdline").read_bytes()
        list(stream)
    assert database.encode() in arguments
    assert PASSWORD.encode() not in arguments
    assert PASSWORD.split()[0].encode() not in arguments
    assert PASSWORD not in json.dumps(source.record().moment) + repr(source)


def test_options_of_the_url_are_passed_on(postgres: PostgresServer, database: str) -> None:
    plain = postgres.url(database, password=PASSWORD, sslmode="require")
    with pytest.raises(DatabaseError, match="SSL"):
        list(source_of(plain).scan(ignore))
    backup(postgres.url(database, password=PASSWORD, sslmode="prefer", connect_timeout="7"))
    # asyncpg's own names, which a service that uses it has in its URL
    backup(postgres.url(database, password=PASSWORD, ssl="prefer", prepared_statement_cache_size="0"))
    backup(make_url(f"postgresql:///{database}?host={postgres.directory}&port={postgres.port}&user=postgres"))


def test_of_several_hosts_the_one_that_answers_is_dumped(postgres: PostgresServer, database: str) -> None:
    url = make_url(
        f"postgresql://postgres@/{database}?host=/nowhere,{postgres.directory}&port=1,{postgres.port}"
    )
    assert backup(url)[2]["rows"] == {}


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="sslmoed"):
        source_of(make_url("postgresql://host/name?sslmoed=require"))


def test_a_secret_that_programs_could_not_be_given_is_refused() -> None:
    with pytest.raises(ConfigError, match="sslpassword") as caught:
        source_of(make_url("postgresql://host/name?sslpassword=hush"))
    assert "hush" not in str(caught.value)


def test_a_missing_psycopg_is_told() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from holdfast.errors import ConfigError\n"
        "try:\n    import holdfast.sources.postgres\n"
        "except ConfigError as error:\n    print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "holdfast[postgres]" in done.stdout


def test_a_table_that_is_locked_too_long_is_an_error(postgres: PostgresServer, database: str) -> None:
    postgres.run(database, "CREATE TABLE item (id int)")
    with psycopg.connect(postgres.conninfo(database)) as connection:
        connection.execute("LOCK TABLE item")
        with pytest.raises(DatabaseError, match=r"^Database backup failed.*lock"):
            drain(opened(postgres.url(database), timeout=0.2))


def test_limits_that_the_role_has_do_not_end_a_dump(postgres: PostgresServer, database: str) -> None:
    postgres.run(
        database,
        f'CREATE TABLE item (id int); ALTER DATABASE "{database}" SET statement_timeout = 40;'
        f'ALTER DATABASE "{database}" SET idle_in_transaction_session_timeout = 40',
    )
    content = opened(postgres.url(database))
    select_nothing(0.1)
    drain(content)


def test_rows_that_the_role_may_not_see_are_an_error(postgres: PostgresServer, database: str) -> None:
    postgres.role("reader")
    postgres.run(
        database,
        "CREATE TABLE item (id int); CREATE TABLE hidden (id int); GRANT SELECT ON hidden TO reader;"
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON hidden USING (false)",
    )
    url = postgres.url(database, user="reader")
    with pytest.raises(DatabaseError, match=r"^Database backup failed"):
        backup(url)
    failed = [finding for finding in source_of(url).check() if finding.state == "FAILED"]
    assert "public.hidden, public.item" in failed[0].detail


@pytest.fixture
def old_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pg_dump that says it is of version 9."""
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "pg_dump (PostgreSQL) 9.6.24"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("old_client")
def test_a_client_older_than_the_server_is_told_before_anything_is_dumped(
    postgres: PostgresServer, database: str
) -> None:
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*PostgreSQL \d\d.*9\.6\.24"):
        opened(postgres.url(database))
    assert [finding for finding in source_of(postgres.url(database)).check() if finding.state == "FAILED"]


def test_a_real_newer_server_is_told() -> None:
    programs = newer()
    if programs is None:
        pytest.skip("no newer server is installed: pip install pgserver")
    with own_server(programs) as server, pytest.raises(DatabaseError, match="must not be older"):
        opened(server.url("postgres"))


def test_a_check_tells_what_a_restore_would_do(postgres: PostgresServer, database: str) -> None:
    def found(user: str) -> list[Finding]:
        return [item for item in source_of(postgres.url(database, user=user)).check() if item.state != "ok"]

    postgres.role("tenant")
    assert found("postgres") == []
    assert [(item.state, "single transaction" in item.detail) for item in found("tenant")] == [
        ("warning", True)
    ]


def test_a_check_tells_of_large_objects_that_a_dump_would_stop_at(
    postgres: PostgresServer, database: str
) -> None:
    def failed(user: str) -> list[str]:
        findings = source_of(postgres.url(database, user=user)).check()
        return [item.detail for item in findings if item.state == "FAILED"]

    postgres.role("reader")
    postgres.run(database, "SELECT lo_from_bytea(4711, 'content')")
    assert failed("postgres") == []
    assert failed("reader") == ["role reader may not read all of: 1 large objects"]
    postgres.run(database, "GRANT SELECT ON LARGE OBJECT 4711 TO reader")
    assert failed("reader") == []


def test_a_standby_is_dumped_like_its_primary() -> None:
    with own_server() as primary:
        primary.create("data")
        primary.run("data", "CREATE TABLE item AS SELECT 1 AS id; CREATE UNLOGGED TABLE cache (id int)")
        with primary.standby() as standby:
            moment = backup(standby.url("data"))[2]
    assert moment["rows"] == {"public": {"item": 1}}
    assert "/" in moment["lsn"]


def test_both_sides_of_a_relation_are_of_one_moment(postgres: PostgresServer, database: str) -> None:
    postgres.run(database, "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int REFERENCES a)")
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(postgres.conninfo(database)) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("INSERT INTO a VALUES (%s)", (number,))
                connection.execute("INSERT INTO b VALUES (%s)", (number,))
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        moments = [backup(postgres.url(database))[2]["rows"]["public"] for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    assert all(moment["a"] == moment["b"] for moment in moments)
    assert moments[-1]["a"] > moments[0]["a"]
