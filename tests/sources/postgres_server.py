"""A private PostgreSQL server for tests, from the binaries that are installed."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL

from forks import NOBODY

ADMIN, PASSWORD = "postgres", "top-secret of the admin"
_WANTED = ("initdb", "postgres", "pg_dump", "pg_restore", "psql")


class PostgresServer:
    """A running server. Everybody may connect by its socket; by TCP only with a password."""

    def __init__(
        self, programs: Path, directory: Path | None = None, *, primary: PostgresServer | None = None
    ) -> None:
        """`directory`: an existing one for its data, whose log of changes then lies elsewhere. `primary`: this one
        follows it."""
        self.programs = programs
        self.directory = directory or Path(tempfile.mkdtemp(prefix="hf-pg-"))
        self._user = NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.directory, NOBODY, NOBODY)
        password = self.directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._log = Path(tempfile.mkdtemp(prefix="hf-pg-")) if directory else None
        if self._log is not None and self._user is not None:
            os.chown(self._log, NOBODY, NOBODY)
        if primary is not None:
            self._call(
                "pg_basebackup", f"--dbname={primary.conninfo('')}", "--pgdata", self.data, "--write-recovery-conf",
                "--no-sync", "--checkpoint=fast",
            )  # fmt: skip
        else:
            self._call(
                "initdb", "--pgdata", self.data, "--username", ADMIN, "--pwfile", password, "--encoding=UTF8",
                "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--wal-segsize=1",
                *([] if self._log is None else ["--waldir", self._log / "wal"]),
            )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @contextmanager
    def standby(self) -> Iterator[PostgresServer]:
        """A server that follows this one and can only be read."""
        server = PostgresServer(self.programs, primary=self)
        try:
            yield server
        finally:
            server.remove()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self) -> None:
        options = {
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "60",
            "unix_socket_directories": self.directory, "listen_addresses": "127.0.0.1", "port": self.port,
            "max_wal_size": "256MB", "shared_buffers": "32MB", "autovacuum": "off", "max_prepared_transactions": "5",
            "min_wal_size": "2MB",
        }  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *(f"--{key}={options[key]}" for key in options)],
                stdout=log, stderr=log, user=self._user, group=self._user,
                extra_groups=None if self._user is None else [],
            )  # fmt: skip
        for _ in range(2000):
            try:
                with psycopg.connect(self.conninfo("postgres")):
                    return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    break
            select_nothing(0.01)
        raise RuntimeError((self.directory / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Ends it; by default at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._log is not None:
            shutil.rmtree(self._log, ignore_errors=True)

    def url(self, database: str, *, user: str = ADMIN, password: str | None = None, **query: str) -> URL:
        """By the socket; by TCP where there is a password."""
        if password is None:
            return URL.create(
                "postgresql",
                user,
                database=database,
                query={"host": str(self.directory), "port": str(self.port), **query},
            )
        return URL.create("postgresql", user, password, "127.0.0.1", self.port, database, query)

    def conninfo(self, database: str, user: str = ADMIN) -> str:
        return psycopg.conninfo.make_conninfo(
            host=str(self.directory),
            port=self.port,
            user=user,
            dbname=database,
            client_encoding="UTF8",
            options="-c default_transaction_read_only=off",
        )

    def run(self, database: str, statement: Any, *values: object, user: str = ADMIN) -> list[tuple[Any, ...]]:
        """Runs statements in a connection of their own, and returns the last one's rows."""
        with psycopg.connect(self.conninfo(database, user), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create(self, database: str, options: str = "") -> None:
        self.run("postgres", sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(database)))

    def drop(self, database: str) -> None:
        self.run(
            "postgres", sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
        )

    def databases(self) -> list[str]:
        return [name for (name,) in self.run("postgres", "SELECT datname FROM pg_database ORDER BY 1")]

    def has(self, database: str) -> bool:
        return database in self.databases()

    def role(self, name: str, options: str = "LOGIN") -> None:
        """Makes a role where there is none."""
        if not self.run("postgres", "SELECT 1 FROM pg_roles WHERE rolname = %s", name):
            self.run("postgres", sql.SQL("CREATE ROLE {} " + options).format(sql.Identifier(name)))

    def _call(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)], user=self._user, group=self._user, check=False,
            extra_groups=None if self._user is None else [], capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)


def select_nothing(seconds: float) -> None:
    """Waits between two looks at something that is about to happen."""
    import select

    select.select([], [], [], seconds)


def installed() -> Path | None:
    """Where the newest server's programs are."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if postgres := shutil.which("postgres"):
        places.insert(0, Path(postgres).resolve().parent)
    return next((path for path in reversed(places) if all((path / name).exists() for name in _WANTED)), None)


def newer() -> Path | None:
    """Where the programs of a server of a newer major version are: those that the package pgserver brings."""
    found = importlib.util.find_spec("pgserver")
    if found is None or found.origin is None:
        return None
    programs = Path(found.origin).parent / "pginstall" / "bin"
    here = installed()
    return programs if here is not None and major(programs) > major(here) else None


def major(programs: Path) -> int:
    said = subprocess.run(
        [programs / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return int(said.split()[2].partition(".")[0])


@functools.cache
def _running() -> PostgresServer:
    programs = installed()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed: apt install postgresql")
    server = PostgresServer(programs)
    owner = os.getpid()
    atexit.register(lambda: server.remove() if os.getpid() == owner else None)
    return server


@pytest.fixture(scope="session", name="postgres")
def postgres_fixture() -> PostgresServer:
    """One for all tests of a process."""
    return _running()


@pytest.fixture(name="database")
def database_fixture(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an empty database."""
    name = f"t_{abs(hash(request.node.nodeid)):x}"
    postgres.drop(name)
    postgres.create(name)
    yield name
    for found in postgres.databases():
        if found == name or found.startswith(f"{name}__holdfast_"):
            postgres.drop(found)


@contextmanager
def own_server(programs: Path | None = None, directory: Path | None = None) -> Iterator[PostgresServer]:
    """A server that a test may stop and kill."""
    programs = programs or installed()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed: apt install postgresql")
    server = PostgresServer(programs, directory)
    try:
        yield server
    finally:
        server.remove()
