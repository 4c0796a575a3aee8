"""The databases that the demonstration can be given on."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from holdfast.errors import DatabaseError, HoldfastError, UsageError

Tables = dict[str, tuple[int, str]]
"""The number of rows of each table, and the SHA-256 of all that is in them."""

_INSTALLED = "/usr/lib/postgresql"
"""Where Debian and its like keep the programs of a PostgreSQL server, by version."""


class DemoDatabase(Protocol):
    """The database of the example service."""

    environment: dict[str, str]
    """What the service and Holdfast need to find it."""
    name: str
    """What a person calls it."""
    destroying: str
    """The command that would destroy it."""

    def predictions(self) -> int: ...

    def tables(self) -> Tables: ...

    def destroy(self) -> None: ...

    def is_there(self) -> bool: ...

    def predictions_in(self, opened: Path) -> int:
        """Those in an archive that was opened without Holdfast, into this directory."""
        ...


class SqliteDemo:
    """A file in the service's directory."""

    name = "iit_ml_service.db"
    destroying = f"rm -f {name}*"

    def __init__(self, home: Path) -> None:
        self.environment: dict[str, str] = {}
        self._home = home

    def predictions(self) -> int:
        return _sqlite_predictions(self._home / self.name)

    def tables(self) -> Tables:
        """Raises HoldfastError for a database that is not sound."""
        path = self._home / self.name
        with closing(_connect(path)) as database:
            if (verdict := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise DatabaseError(f"{path} is damaged: {verdict}")
            names = [
                row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            ]
            return {name: _digest(database.execute(_everything(name, "rowid"))) for name in names}

    def destroy(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self._home / f"{self.name}{suffix}").unlink(missing_ok=True)

    def is_there(self) -> bool:
        return (self._home / self.name).exists()

    def predictions_in(self, opened: Path) -> int:
        return _sqlite_predictions(opened / "database" / "main.db")


class PostgresDemo:
    """A database on a PostgreSQL server of its own."""

    name = "iit_ml_service"
    destroying = f"dropdb {name}"

    def __init__(self, port: int, programs: Path) -> None:
        self.environment = {"DATABASE_URL": f"postgresql+psycopg://demo@127.0.0.1:{port}/{self.name}"}
        self._port = port
        self._programs = programs
        self._administer(f'CREATE DATABASE "{self.name}"')

    def predictions(self) -> int:
        with self._connected(self.name) as database:
            return _count(database.execute("SELECT count(*) FROM predictions"))

    def tables(self) -> Tables:
        with self._connected(self.name) as database:
            names = [
                row[0]
                for row in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ]
            return {name: _digest(database.execute(_everything(name, "id"))) for name in names}

    def destroy(self) -> None:
        self._administer(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    def is_there(self) -> bool:
        with self._connected("postgres") as database:
            found = database.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.name,))
            return found.fetchone() is not None

    def predictions_in(self, opened: Path) -> int:
        """Joins the pieces of the dump and loads them with ``pg_restore``, as a person would."""
        self._administer("CREATE DATABASE opened")
        connection = ("-h", "127.0.0.1", "-p", str(self._port), "-U", "demo", "-d", "opened")
        command = [str(self._programs / "pg_restore"), "--no-owner", *connection]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            assert child.stdin is not None
            for piece in sorted((opened / "database").glob("main.dump.*")):
                with piece.open("rb") as file:
                    shutil.copyfileobj(file, child.stdin)
            child.stdin.close()
        if child.returncode != 0:
            raise DatabaseError(f"pg_restore ended with status {child.returncode}")
        with self._connected("opened") as database:
            return _count(database.execute("SELECT count(*) FROM predictions"))

    def _administer(self, statement: str) -> None:
        with self._connected("postgres") as database:
            database.execute(statement)

    @contextmanager
    def _connected(self, name: str) -> Iterator[Any]:
        from psycopg import connect

        with connect(
            host="127.0.0.1", port=self._port, user="demo", dbname=name, autocommit=True
        ) as connection:
            yield connection


@contextmanager
def demo_database(kind: str, home: Path) -> Iterator[DemoDatabase]:
    """The database that the service in `home` is to use: ``sqlite``, or ``postgres``, for which a server is started
    from the programs that are installed. Raises UsageError."""
    if kind == "sqlite":
        yield SqliteDemo(home)
    elif kind in ("postgres", "postgresql"):
        with _server() as (port, programs):
            yield PostgresDemo(port, programs)
    else:
        raise UsageError(f"the demonstration knows no database {kind!r}", hint="It is sqlite or postgres.")


@contextmanager
def _server() -> Iterator[tuple[int, Path]]:
    """A private server: its port, and the directory of its programs."""
    programs = _programs()
    user = _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="holdfast-demo-postgres-"))
    try:
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        data = directory / "data"
        _run(
            [
                str(programs / "initdb"),
                "-D",
                str(data),
                "-U",
                "demo",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
            user,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-s"]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
        _run([*control, "-l", str(directory / "log"), "-o", options, "start"], user)
        try:
            yield port, programs
        finally:
            _run([*control, "-m", "immediate", "stop"], user)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path:
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    installed = sorted(Path(_INSTALLED).glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    for directory in (*installed, *on_path):
        if all((directory / name).exists() for name in ("initdb", "pg_ctl", "postgres", "pg_restore")):
            return directory
    raise UsageError(
        "no PostgreSQL server is installed here",
        hint="Install one (Debian: apt install postgresql), or show it with SQLite: make demo.",
    )


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run the server as: it refuses to be run by root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise UsageError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


def _run(command: Sequence[str], user: pwd.struct_passwd | None) -> None:
    identity: dict[str, Any] = (
        {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    )
    done = subprocess.run(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        check=False, **identity,
    )  # fmt: skip
    if done.returncode != 0:
        raise HoldfastError(
            f"{Path(command[0]).name} ended with status {done.returncode}: {done.stderr.strip()}"
        )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def _sqlite_predictions(path: Path) -> int:
    with closing(_connect(path)) as database:
        return _count(database.execute("SELECT count(*) FROM predictions"))


def _count(answer: Any) -> int:
    return int(answer.fetchone()[0])


def _everything(table: str, order: str) -> str:
    quoted = table.replace('"', '""')
    return f'SELECT * FROM "{quoted}" ORDER BY {order}'  # noqa: S608 - no value, a quoted name


def _digest(rows: Any) -> tuple[int, str]:
    digest, count = hashlib.sha256(), 0
    for row in rows:
        digest.update(repr(row).encode())
        count += 1
    return count, digest.hexdigest()
