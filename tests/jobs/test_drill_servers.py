"""A rehearsed restore of databases on servers: into scratch there, never into the live ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from holdfast.errors import CorruptBackup, HookFailed
from holdfast.events import ignore
from holdfast.installation import Installation
from holdfast.jobs.backup import backup
from holdfast.jobs.drill import Drilled, drill
from holdfast.jobs.recover import recover
from holdfast.model import BackupMetadata
from holdfast.sources.postgres import _scratch
from jobs.test_drill import wait_for
from sources import mysql_server, redis_server
from sources.postgres_server import PASSWORD, PostgresServer, database_fixture, postgres_fixture

__all__ = ["database_fixture", "postgres_fixture"]


class Ground:
    """A service whose database is on a server."""

    def __init__(self, top: Path, url: URL) -> None:
        self.root = top / "service"
        self.root.mkdir()
        self.url = url
        text = url.render_as_string(hide_password=False)
        self.environ = {
            "XDG_STATE_HOME": str(top / "state"),
            "HOME": str(top),
            "BACKUP_ENCRYPT": "false",
            "DATABASE_URL": text,
        }

    def command(self, program: str) -> None:
        (self.root / "holdfast.toml").write_text(
            f"[drill]\ncommand = {json.dumps([sys.executable, '-c', program])}\n"
        )

    def installation(self) -> Installation:
        return Installation.load(self.root, self.environ)

    def back_up(self) -> BackupMetadata:
        return backup(self.installation(), ignore, components=["database"]).metadata

    def rehearse(self) -> Drilled:
        return drill(self.installation(), "latest", ignore)

    def history(self) -> str:
        return self.installation().state.history_file.read_text()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    assert list(path.iterdir()) == []


@pytest.fixture
def ground(tmp_path: Path, scratch: Path, postgres: PostgresServer, database: str) -> Iterator[Ground]:
    """Rows in PostgreSQL, by TCP and with a password; no scratch database is left there."""
    postgres.run(database, "CREATE TABLE sample (id int); INSERT INTO sample SELECT generate_series(1, 500)")
    yield Ground(tmp_path, postgres.url(database, password=PASSWORD))
    assert not [name for name in postgres.databases() if "__holdfast_" in name]
    assert postgres.run(database, "SELECT count(*) FROM sample") == [(500,)]


def test_a_postgresql_database_is_loaded_beside_the_live_one(
    ground: Ground, tmp_path: Path, database: str
) -> None:
    answer = tmp_path / "answer"
    ground.url = ground.url.set(drivername="postgresql+psycopg")
    ground.environ["DATABASE_URL"] = ground.url.render_as_string(hide_password=False)
    ground.command(
        f"""
import os, sqlalchemy
url = os.environ["DATABASE_URL"]
engine = sqlalchemy.create_engine(url)
with engine.begin() as connection:
    deleted = connection.execute(sqlalchemy.text("DELETE FROM sample")).rowcount
open({str(answer)!r}, "w").write(f"{{deleted}} {{url}}")
"""
    )
    ground.back_up()
    done = ground.rehearse()
    assert (done.checks.databases, done.checks.tables, done.checks.command) == (1, 1, True)
    assert set(done.stages) == {"open", "load", "command"}
    assert done.restore_seconds == done.stages["open"] + done.stages["load"]
    deleted, _, used = answer.read_text().partition(" ")
    assert deleted == "500"
    assert make_url(used).drivername == "postgresql+psycopg"
    assert str(make_url(used).database).startswith(f"{database}__holdfast_")
    for told in (ground.history(), done.log.read_text(), repr(done)):
        assert PASSWORD not in told


def test_a_failing_command_leaves_no_scratch_database(ground: Ground) -> None:
    ground.command("raise SystemExit(1)")
    ground.back_up()
    with pytest.raises(HookFailed):
        ground.rehearse()


def test_rows_that_are_not_those_recorded_fail(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.back_up()
    monkeypatch.setattr(_scratch, "count", lambda session, schema, table: 499)
    with pytest.raises(CorruptBackup, match=r"499 rows in public\.sample, and not 500"):
        ground.rehearse()


def test_what_a_killed_drill_left_on_the_server_is_swept(
    ground: Ground, postgres: PostgresServer, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    ground.command(f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    ground.back_up()
    with subprocess.Popen(
        [sys.executable, "-m", "holdfast", "drill"],
        cwd=ground.root,
        env=os.environ | ground.environ,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: started.exists() and bool(started.read_text()))
        process.kill()
        process.wait()
    os.kill(int(started.read_text()), signal.SIGKILL)
    assert [name for name in postgres.databases() if "__holdfast_" in name]
    assert recover(ground.installation(), ignore)


def test_a_role_that_may_make_no_scratch_database_is_told_what_was_not_tried(
    ground: Ground, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    ground.command(f"import os; open({str(answer)!r}, 'w').write(repr(os.environ['DATABASE_URL']))")
    postgres.role("drilled", "LOGIN PASSWORD 'secret'")
    postgres.run(database, "GRANT SELECT ON sample TO drilled")
    ground.environ["DATABASE_URL"] = postgres.url(
        database, user="drilled", password="secret"
    ).render_as_string(hide_password=False)
    ground.back_up()
    done = ground.rehearse()
    assert (done.checks.databases, done.restore_seconds) == (0, None)
    assert "was read and not loaded" in str(done.warnings)
    assert answer.read_text() == "''"


def test_a_mysql_database_is_loaded_beside_the_live_one(tmp_path: Path, scratch: Path) -> None:
    answer = tmp_path / "answer"
    with mysql_server.running_server() as server:
        server.run(
            "CREATE DATABASE shop",
            "CREATE USER driller@localhost IDENTIFIED BY 'secret'",
            "GRANT ALL ON *.* TO driller@localhost",
        )
        server.run(
            "CREATE TABLE sample (id INT PRIMARY KEY)",
            "INSERT INTO sample SELECT seq FROM seq_1_to_500",
            database="shop",
        )
        url = server.url("shop").set(drivername="mariadb+pymysql", username="driller", password="secret")
        ground = Ground(tmp_path, url)
        ground.command(
            f"""
import os, sqlalchemy
engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"])
with engine.begin() as connection:
    deleted = connection.execute(sqlalchemy.text("DELETE FROM sample")).rowcount
open({str(answer)!r}, "w").write(str(deleted))
"""
        )
        ground.back_up()
        schemas = server.schemas(".")
        done = ground.rehearse()
        assert (done.checks.databases, done.checks.tables) == (1, 1)
        assert answer.read_text() == "500"
        assert server.rows("SELECT count(*) FROM sample", "shop") == [(500,)]
        assert server.schemas(".") == schemas


def test_a_redis_database_is_loaded_into_a_spare_one(tmp_path: Path, scratch: Path) -> None:
    answer = tmp_path / "answer"
    with redis_server.running() as server:
        with server.client(3) as client:
            client.set("greeting", "hello")
        ground = Ground(tmp_path, server.url(3))
        ground.command(
            f"""
import os, redis
with redis.Redis.from_url(os.environ["DATABASE_URL"]) as client:
    said = client.getset("greeting", "changed")
open({str(answer)!r}, "wb").write(said)
"""
        )
        ground.back_up()
        done = ground.rehearse()
        assert done.checks.databases == 1
        assert answer.read_text() == "hello"
        with server.client(3) as client:
            assert client.get("greeting") == b"hello"
            assert list(client.info("keyspace")) == ["db3"]
