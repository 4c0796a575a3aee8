"""Connections to a MySQL or MariaDB server, and its refusals told as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from holdfast.errors import (
    ConfigError,
    CorruptBackup,
    DatabaseBusy,
    DatabaseError,
    HoldfastError,
    NoSpace,
    RestoreError,
    SourceMissing,
)
from holdfast.sources._server import Address
from holdfast.sources.mysql._login import driver_options
from holdfast.text import harmless

if TYPE_CHECKING:
    from sqlalchemy import URL

# https://mariadb.com/kb/en/mariadb-error-codes/ and https://dev.mysql.com/doc/mysql-errors/8.4/en/
DENIED_IN_SCHEMA, DENIED_LOGIN, NO_SCHEMA, NO_TABLE, DENIED_ON_TABLE = 1044, 1045, 1049, 1146, 1142
NOT_PRIVILEGED = 1227
"""Also for an object whose definer is somebody else."""
NO_SUCH_THREAD, UNKNOWN_VARIABLE = 1094, 1193
_BUSY = (1205, 1213, 3572)
_FULL = (1021, 1114, 1041, 3675)
_UNREACHABLE = (2002, 2003, 2005)
_LOST = (0, 1053, 1080, 1927, 2006, 2013, 2055)
_DENIED = (
    DENIED_IN_SCHEMA,
    1143,
    DENIED_ON_TABLE,
    NOT_PRIVILEGED,
    1370,
    1410,
    1419,
    1698,
    DENIED_LOGIN,
)
_TOO_LARGE = 1153
_SYNTAX = 1064
_TOLD = 500


MODE = "NO_AUTO_VALUE_ON_ZERO"
"""The ``sql_mode`` of a session: that under which dumps are to be loaded."""


class Refused(Exception):
    """What the server, or the way to it, said. `explaining` turns it into one of our errors."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = harmless(text)[:_TOLD]


class Session:
    """One connection. Its methods raise `Refused`.

    Every lock is waited for `timeout` seconds at most. Each statement is sent by itself: the server refuses a text
    that holds two (CLIENT_MULTI_STATEMENTS is off), and may not ask for files of ours (LOAD DATA LOCAL is off).
    """

    def __init__(self, url: URL, *, timeout: float, database: str | None = None) -> None:
        self._pymysql = load_driver()
        seconds = max(1, round(timeout))
        with self._refusals():
            self._connection: Any = self._pymysql.connect(
                database=database,
                charset="utf8mb4",
                connect_timeout=seconds,
                autocommit=True,
                local_infile=False,
                **driver_options(url),
            )
        try:
            # Identifiers are then quoted by backticks, and strings escaped by backslashes, whatever the server's
            # default is.
            self.run(f"SET SESSION sql_mode = '{MODE}'")
            self.run(f"SET SESSION lock_wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds}")
            self.run("SET SESSION wait_timeout = 86400, net_read_timeout = 3600, net_write_timeout = 3600")
            self.version = str(self.value("SELECT VERSION()"))
            self.flavour = "MariaDB" if "mariadb" in self.version.lower() else "MySQL"
            self.run(f"SET SESSION {'max_statement_time' if self.is_mariadb else 'max_execution_time'} = 0")
        except BaseException:
            self.close()
            raise

    @property
    def is_mariadb(self) -> bool:
        return self.flavour == "MariaDB"

    @property
    def major(self) -> int:
        return major_of(self.version)

    def run(self, statement: str | bytes, arguments: Sequence[Any] = ()) -> None:
        """Runs a statement. Bytes go to the server as they are."""
        with self._refusals(), self._connection.cursor() as cursor:
            cursor.execute(statement, tuple(arguments) or None)

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All that a query gives. For short answers."""
        with self._refusals(), self._connection.cursor() as cursor:
            cursor.execute(query, tuple(arguments) or None)
            return list(cursor.fetchall())

    def names(self, query: str, arguments: Sequence[Any] = ()) -> list[str]:
        """The first column, as text."""
        return [_text(row[0]) for row in self.rows(query, arguments)]

    def value(self, query: str, arguments: Sequence[Any] = ()) -> Any:
        """The first value; None where there is none."""
        rows = self.rows(query, arguments)
        return rows[0][0] if rows else None

    def raw(self, query: str) -> list[tuple[bytes | None, ...]]:
        """The answer in the bytes that the server has stored, each in a character set of its own."""
        self.run("SET character_set_results = NULL")
        self._connection.use_unicode = False
        try:
            return [tuple(_bytes(value) for value in row) for row in self.rows(query)]
        finally:
            self._connection.use_unicode = True
            with suppress(Refused):  # a lost connection is told by what comes next
                self.run("SET character_set_results = utf8mb4")

    def variable(self, name: str) -> str | None:
        """A variable of the server; None for one that it does not have."""
        try:
            value = self.value(f"SELECT @@{name}")
        except Refused as refusal:
            if refusal.code != UNKNOWN_VARIABLE:
                raise
            return None
        return None if value is None else _text(value)

    def has_schema(self, schema: str) -> bool:
        found = self.value("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = %s", [schema])
        return found is not None

    def close(self) -> None:
        with suppress(self._pymysql.err.Error, OSError):
            self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except self._pymysql.err.Error as error:
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            text = str(error.args[1]) if len(error.args) > 1 else str(error)
            raise Refused(code, text) from error
        except (OSError, RuntimeError) as error:
            # RuntimeError: a way of logging in that needs a package which is not installed.
            raise Refused(2003 if isinstance(error, OSError) else 2059, str(error)) from error


def load_driver() -> ModuleType:
    """PyMySQL. Raises ConfigError where it is not installed."""
    try:
        import pymysql  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError(
            "PyMySQL is needed for MySQL and MariaDB, and is not installed",
            hint="Install it: pip install 'holdfast[mysql]'.",
        ) from None
    driver: ModuleType = pymysql
    return driver


def identifier(name: str) -> str:
    """A name as it stands in SQL: in backticks, those in it doubled
    (https://dev.mysql.com/doc/refman/8.4/en/identifiers.html)."""
    if "\0" in name:
        raise ValueError("no name holds NUL")
    return "`" + name.replace("`", "``") + "`"


def qualified(schema: str, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}"


def major_of(version: str) -> int:
    """The first number of a version; 0 where there is none."""
    digits = version.partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 9 else 0


@contextmanager
def explaining(doing: str, address: Address) -> Iterator[None]:
    """Turns refusals into our errors, whose messages begin with `doing`.

    Raises DatabaseBusy, NoSpace, CorruptBackup, SourceMissing, RestoreError and DatabaseError. `doing` that begins
    with "Database restore" makes refusals RestoreError, else they are DatabaseError.
    """
    try:
        yield
    except Refused as refusal:
        raise _explain(refusal, doing, address) from refusal


def _explain(refusal: Refused, doing: str, address: Address) -> HoldfastError:
    start, code = f"{doing}: {address}", refusal.code
    restoring = doing.startswith("Database restore")
    usual: type[HoldfastError] = RestoreError if restoring else DatabaseError
    if code in _BUSY:
        return DatabaseBusy(f"{start} stayed locked by others: {refusal.text}")
    if code in _FULL or "errno: 28" in refusal.text.lower():
        return NoSpace(f"{start}: the server's disk is full: {refusal.text}", hint="Free some space there.")
    if code in _UNREACHABLE:
        return DatabaseError(
            f"{start} cannot be reached: {refusal.text}",
            hint="Is the server running, and are host, port or unix_socket of the URL right?",
        )
    if code == NO_SCHEMA:
        return SourceMissing(f"{start} is not there", hint="Is the name right in its URL?")
    if code in (DENIED_LOGIN, 1698) or code == 2059:
        return DatabaseError(
            f"{start} refuses us: {refusal.text}",
            hint="Check user and password in its URL, and from which hosts that user may connect.",
        )
    if code in _DENIED:
        return usual(
            f"{start} does not permit it: {refusal.text}",
            hint="Grant what it names; `holdfast check` tells all that is needed.",
        )
    if code in _LOST:
        return DatabaseError(
            f"{start}: the connection was lost", hint="The server's own log says why; then try again."
        )
    if code == _TOO_LARGE:
        return usual(f"{start}: {refusal.text}", hint="Raise max_allowed_packet of the server.")
    if code == _SYNTAX and restoring:
        return CorruptBackup(f"{start}: the server does not understand the dump: {refusal.text}")
    return usual(f"{start}: error {code}: {refusal.text}")


def privileges(session: Session, schema: str) -> set[str] | None:
    """What our user may do with a schema, which need not be there; None where roles make that hard to tell."""
    try:
        if session.value("SELECT CURRENT_ROLE()") not in (None, "NONE"):
            return None
    except Refused as refusal:
        if refusal.code not in (1305, _SYNTAX):  # versions without roles
            raise
    user, _, host = str(session.value("SELECT CURRENT_USER()")).rpartition("@")
    grantees = (f"'{user}'@'{host}'", "'PUBLIC'@''", "PUBLIC")
    found = session.names(
        "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE IN %s UNION "
        "SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES"
        " WHERE GRANTEE IN %s AND %s LIKE TABLE_SCHEMA",
        [grantees, grantees, schema],
    )
    return set(found)


def _text(value: Any) -> str:
    if isinstance(value, tuple):  # an option that a URL has twice
        return _text(value[-1])
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
