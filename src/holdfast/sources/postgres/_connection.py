"""How a PostgreSQL server is reached: by psycopg for what we ask ourselves, by its own programs for dumps.

Both get the same connection parameters (https://www.postgresql.org/docs/current/libpq-connect.html), which a URL
names in its query. A password goes to a program in its environment, never in its arguments.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from holdfast.errors import (
    ConfigError,
    DatabaseBusy,
    DatabaseError,
    HoldfastError,
    NoSpace,
    SourceMissing,
)
from holdfast.sources._program import Program, find_program
from holdfast.sources._server import Address
from holdfast.text import harmless

try:
    import psycopg
    from psycopg import conninfo
    from psycopg import sql as sql
except ImportError as missing:
    raise ConfigError(
        "a PostgreSQL database is configured, and psycopg is not installed",
        hint="Install it: pip install 'holdfast[postgres]'.",
    ) from missing

if TYPE_CHECKING:
    from sqlalchemy import URL

BACKUP, RESTORE = "Database backup failed", "Database restore failed"
OLDEST = 10
"""The first major version that we know: before it, functions and version numbers had other names."""

_MAINTENANCE = ("postgres", "template1")
"""Databases that every server has, for what cannot be done from within the database that it is done to."""
_NAME_BYTES = 63
_SHORTEST_CONNECT = 2
"""Seconds. libpq takes no less."""
_SSL_MODES = {"true": "require", "True": "require"}
_OF_OTHER_DRIVERS = {
    "prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size", "command_timeout",
    "max_cached_statement_lifetime", "max_cacheable_statement_size", "async_fallback",
}  # fmt: skip
"""What a URL says to asyncpg alone."""
_NO_ROOM = ("53100",)
_BUSY = ("55P03", "55006", "40P01")
_UNKNOWN_DATABASE = "3D000"
_HINT = "Check that the server runs, and host, port, user and password in DATABASE_URL."

Statement = LiteralString | sql.SQL | sql.Composed


class Server:
    """A database on a server, as a URL names it. `timeout` is in seconds, for connecting and for locks."""

    def __init__(self, url: URL, timeout: float) -> None:
        """Raises ConfigError for what cannot be passed on."""
        self.address = Address.of(url)
        self.database = url.database or ""
        self.timeout = timeout
        self._parameters = _parameters(url)
        self._parameters.setdefault("connect_timeout", max(_SHORTEST_CONNECT, math.ceil(timeout)))
        try:
            conninfo.make_conninfo(**self._parameters)
        except psycopg.Error as error:
            raise ConfigError(
                f"the URL of {self.address} has an option that PostgreSQL does not know: {harmless(str(error))}",
                hint="https://www.postgresql.org/docs/current/libpq-connect.html has the options.",
            ) from None
        self._secrets = [str(url.password)] if url.password else []

    def __repr__(self) -> str:
        return f"Server({self.address})"

    @contextmanager
    def session(self, doing: str, database: str | None = None, *, run: str = "") -> Iterator[Session]:
        """A connection, to another database of the server where one is named.

        `doing` is what messages begin with. `run` marks the sessions of one restore. Raises SourceMissing where the
        database is not there, DatabaseError.
        """
        database = self.database if database is None else database
        try:
            session = self._connect(doing, database, run)
        except psycopg.Error as error:
            raise self._refused(doing, database, error) from None
        with session:
            yield session

    @contextmanager
    def maintenance(self, doing: str, *, run: str = "") -> Iterator[Session]:
        """A connection to a database of the server that is not ours. Raises DatabaseError."""
        failure: psycopg.Error | None = None
        for database in dict.fromkeys((*_MAINTENANCE, str(self._parameters.get("user", "")))):
            if database in ("", self.database):
                continue
            try:
                session = self._connect(doing, database, run)
            except psycopg.Error as error:
                failure = failure or error
            else:
                with session:
                    yield session
                return
        assert failure is not None
        raise self.error(doing, failure)

    def error(self, doing: str, error: psycopg.Error) -> HoldfastError:
        """What psycopg raised, as ours. The message tells no data and no password."""
        text = f"{doing}: {self.address}: {self._told(error)}"
        if error.sqlstate in _NO_ROOM:
            return NoSpace(text, hint="Free some space on the database server.")
        if error.sqlstate in _BUSY:
            return DatabaseBusy(text)
        return DatabaseError(text, hint=_HINT if error.sqlstate is None else "")

    def program(
        self,
        arguments: Sequence[str],
        doing: str,
        session: Session | None = None,
        *,
        database: str | None = None,
        run: str = "",
    ) -> Program:
        """One of PostgreSQL's programs, with ``--dbname`` added to its arguments: the very server that `session` has
        reached, where a URL names several."""
        parameters = dict(self._parameters)
        parameters.update(dbname=database or self.database, application_name=_application(run))
        if session is not None:
            parameters.update(session.reached)
        password = parameters.pop("password", None)
        environ = {"PGCLIENTENCODING": "UTF8"}
        if password is not None:
            environ["PGPASSWORD"] = str(password)
        target = conninfo.make_conninfo(**parameters)
        return Program(
            [*arguments, "--no-password", f"--dbname={target}"], doing, environ=environ, secrets=self._secrets
        )

    def _connect(self, doing: str, database: str, run: str) -> Session:
        connection = psycopg.connect(
            conninfo.make_conninfo(
                **{
                    **self._parameters,
                    "dbname": database,
                    "application_name": _application(run),
                    "client_encoding": "UTF8",
                }
            ),
            autocommit=True,
            prepare_threshold=None,
        )
        session = Session(self, connection, doing)
        try:
            if session.major < OLDEST:
                raise DatabaseError(
                    f"{doing}: {self.address} is PostgreSQL {session.version}, which is too old"
                )
            # Limits that a role or a database sets for its users are not meant for us, and nobody else's functions
            # are called: https://wiki.postgresql.org/wiki/A_Guide_to_CVE-2018-1058
            session.run("SET statement_timeout = 0")
            session.run("SET idle_in_transaction_session_timeout = 0")
            if session.major >= 14:
                session.run("SET idle_session_timeout = 0")
            if session.major >= 17:
                session.run("SET transaction_timeout = 0")
            session.run(
                "SELECT pg_catalog.set_config('search_path', 'pg_catalog', false), "
                "pg_catalog.set_config('default_transaction_read_only', 'off', false), "
                "pg_catalog.set_config('lock_timeout', %s, false)",
                str(milliseconds(self.timeout)),
            )
        except BaseException:
            connection.close()
            raise
        return session

    def _refused(self, doing: str, database: str, error: psycopg.Error) -> HoldfastError:
        # The server's own words depend on its language. Whether there is such a database can be looked up.
        is_missing = f'database "{database}" does not exist' in str(error)
        if not is_missing and database == self.database:
            with suppress(HoldfastError), self.maintenance(doing) as session:
                is_missing = database_id(session, database) is None
        if is_missing:
            return SourceMissing(
                f"{doing}: {self.address}: the server has no such database",
                hint="Correct DATABASE_URL or holdfast.toml. A restore makes it anew with --create-db.",
            )
        return self.error(doing, error)

    def _told(self, error: psycopg.Error) -> str:
        diagnosed = error.diag.message_primary
        text = diagnosed if diagnosed else str(error)
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return harmless(" ".join(text.split()))[:1000]


class Session:
    """A connection to one database. Every statement goes through `run`; each is a transaction of its own, but between
    ``BEGIN`` and ``COMMIT``."""

    def __init__(self, server: Server, connection: psycopg.Connection[Any], doing: str) -> None:
        self._server = server
        self._connection = connection
        self._doing = doing
        self.version = connection.info.parameter_status("server_version") or "unknown"
        """As the server says it: ``15.4 (Debian 15.4-1)``."""
        self.major = connection.info.server_version // 10000

    @property
    def reached(self) -> dict[str, str]:
        """Which of several servers it is."""
        info = self._connection.info
        reached = {"host": info.host, "port": str(info.port)}
        if info.host and not info.host.startswith(("/", "@")) and info.hostaddr:
            reached["hostaddr"] = info.hostaddr
        return reached if info.host else {}

    def run(self, statement: Statement, *values: object) -> list[tuple[Any, ...]]:
        """Runs a statement, and returns its rows. Raises DatabaseError, DatabaseBusy, NoSpace."""
        try:
            cursor = self._connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._server.error(self._doing, error) from error
        except UnicodeError as error:
            raise DatabaseError(f"{self._doing}: {self._server.address}: a name is not UTF-8") from error

    def cancel(self) -> None:
        """Ends the statement that another thread runs."""
        with suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=5)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *details: object) -> None:
        with suppress(psycopg.Error):
            self._connection.close()


@dataclass(frozen=True, slots=True)
class Client:
    """One of PostgreSQL's programs that is installed."""

    path: str
    version: str
    """``15.4``."""

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @classmethod
    def find(cls, name: str, doing: str) -> Client:
        """Raises DatabaseError where it is not installed, or does not say its version."""
        path = find_program(name, package="postgresql-client")
        said = Program([path, "--version"], doing).run()
        found = re.search(r"\(PostgreSQL\) (\d{1,4}(?:\.\d{1,4})*)", said)
        if found is None:
            raise DatabaseError(f"{doing}: {path} does not say which version it is")
        return cls(path, found[1])


def check_dump_client(client: Client, session: Session) -> None:
    """Raises DatabaseError where pg_dump is older than the server: it would refuse."""
    if client.major < session.major:
        raise DatabaseError(
            f"{BACKUP}: the server is PostgreSQL {session.version}, and pg_dump here is {client.version}: it must "
            "not be older",
            hint=f"Install postgresql-client-{session.major}, or put its pg_dump first on PATH.",
        )


def database_id(session: Session, name: str) -> int | None:
    """The OID of a database, which a new name does not change."""
    rows = session.run("SELECT oid::int8 FROM pg_database WHERE datname = %s", name)
    return int(rows[0][0]) if rows else None


def end_run(session: Session, run: str, deadline: float) -> None:
    """Ends what a killed restore has left running on the server, and waits for that: a statement goes on there
    without the process that sent it. `deadline`: as `time.monotonic` counts. Raises DatabaseBusy."""
    while session.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = %s AND pid <> pg_backend_pid() AND usename = current_user",
        _application(run),
    ):
        if time.monotonic() > deadline:
            raise DatabaseBusy(f"{RESTORE}: an earlier step of this restore still runs on the server")
        time.sleep(0.02)


def side_name(database: str, run: str, number: int) -> str:
    """What the `number`-th state of a database is called while it is not live.

    At most 63 bytes, which is what a name may have. One that had to be cut is told from others by a hash.
    """
    suffix = f"__holdfast_{run}" + (f"_{number}" if number else "")
    room = _NAME_BYTES - len(f"__holdfast_{run}_000000")
    name = database.encode()
    if len(name) > room:
        digest = hashlib.sha256(name).hexdigest()[:8]
        name = name[: room - 9].decode(errors="ignore").encode() + b"_" + digest.encode()
    return name.decode() + suffix


def milliseconds(seconds: float) -> int:
    """As a setting takes it: at least one, for none would mean without end."""
    return max(1, min(int(seconds * 1000), 2_000_000_000))


def identifier(name: str) -> sql.Identifier:
    """A name, quoted."""
    return sql.Identifier(name)


def _application(run: str) -> str:
    return f"holdfast {run}".strip()


def _parameters(url: URL) -> dict[str, Any]:
    """libpq's connection parameters. Without a host or a user they are libpq's own defaults."""
    given: dict[str, Any] = {}
    query: Mapping[str, str | tuple[str, ...]] = url.query
    for name, value in query.items():
        if name not in _OF_OTHER_DRIVERS:
            given[name] = value if isinstance(value, str) else ",".join(value)
    if "ssl" in given:  # asyncpg's name for it
        mode = given.pop("ssl")
        given.setdefault("sslmode", _SSL_MODES.get(mode, mode))
    if "sslpassword" in given:
        raise ConfigError(
            f"the URL of {Address.of(url)} has an sslpassword, which others could see in the process list",
            hint="Use a key without a password that only this user can read.",
        )
    for name, part in (
        ("host", url.host),
        ("port", url.port),
        ("user", url.username),
        ("password", url.password),
    ):
        if part is not None and part != "":
            given.setdefault(name, part)
    given["dbname"] = url.database or ""
    given.pop("application_name", None)
    given.pop("client_encoding", None)
    return given
