"""A Redis server, and sessions with it: one connection each, that is never made anew behind our back."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError, HoldfastError, NoSpace
from holdfast.sources._server import Address
from holdfast.text import harmless

if TYPE_CHECKING:
    from sqlalchemy import URL

BACKUP = "Database backup"
RESTORE = "Database restore"
DIALECTS = ("redis", "rediss", "unix")

# What we decide ourselves: a session selects its database, and reads replies as bytes.
_OURS = ("db", "protocol", "decode_responses", "encoding", "health_check_interval", "retry_on_timeout")
_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)
_SHOWN = 300
_DATABASE_LIMIT = 1 << 31

Command = Sequence[str | bytes | int]


class Refused(Exception):
    """The server answered with an error. `code`: its first word, where that is one, else ``UNKNOWN`` for a command
    that the server does not have, else empty."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def is_denied(self) -> bool:
        """Whether it is this user, or this server, that has no such command; another way may be open."""
        return self.code in ("NOPERM", "UNKNOWN")


class Lost(Exception):
    """The server cannot be reached, or the connection ended."""


class Server:
    """One logical database of a server."""

    def __init__(self, url: URL, timeout: float) -> None:
        """`timeout` in seconds: so long connecting, and each answer, is waited for. Raises ConfigError."""
        self.database = database_number(url)
        self.address = Address.of(url)
        self.timeout = timeout
        self._url = url

    def __str__(self) -> str:
        in_query = self.database and str(self.database) != self.address.database
        return harmless(f"{self.address}{f' database {self.database}' if in_query else ''}")

    def session(self) -> Session:
        """A connection, with the logical database 0. Raises Lost, Refused, ConfigError."""
        return Session(self._url, self.timeout)

    @contextmanager
    def explained(self, doing: str, error_class: type[HoldfastError]) -> Iterator[None]:
        """Turns what the server, or the way to it, refuses into ours. `doing`: `BACKUP` or `RESTORE`."""
        try:
            yield
        except Refused as error:
            if error.code == "OOM":
                raise NoSpace(
                    f"{doing} failed: {self} has no memory left (maxmemory)",
                    hint="A restore takes the memory of the data twice, until what was replaced is discarded. "
                    "Raise maxmemory.",
                ) from error
            raise error_class(f"{doing} failed: {self}: {error}", hint=_HINTS.get(error.code, "")) from error
        except Lost as error:
            raise error_class(
                f"{doing} failed: {self}: {error}",
                hint="Is the server running, and the URL right?",
            ) from error


_HINTS = {
    "NOPERM": "Give the user that command: ACL SETUSER.",
    "AUTH": "Check the user and the password in the URL.",
    "READONLY": "That server is a replica. Restore to its master.",
}


def database_number(url: URL) -> int:
    """The logical database that a URL means: its ``?db=``, else its path. Raises ConfigError."""
    text = url.query.get("db") or (url.database if url.get_backend_name() != "unix" else None) or "0"
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 10 or int(text) >= _DATABASE_LIMIT:
        raise ConfigError(
            f"the URL of {harmless(str(Address.of(url)))} does not end with the number of a logical database",
            hint="It reads redis://user:password@host:6379/0, or unix:///path/to/socket?db=0.",
        )
    return int(text)


class Session:
    """One connection. Not to be shared between threads."""

    def __init__(self, url: URL, timeout: float) -> None:
        try:
            import redis
        except ImportError:
            raise ConfigError(
                "a Redis database is configured, and Holdfast is installed without what talks to Redis",
                hint="Install it: pip install 'holdfast[redis]'.",
            ) from None
        self._redis = redis
        self._secrets = [
            str(secret)
            for secret in (url.password, url.query.get("password"))
            if secret and len(str(secret)) > 3
        ]
        self._broken = False
        shorter = url.difference_update_query(_OURS)
        if url.get_backend_name() != "unix":
            shorter = shorter.set(database="0")
        try:
            pool = redis.ConnectionPool.from_url(
                shorter.render_as_string(hide_password=False),
                protocol=2,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
            )
            # A command that was sent twice could do twice what it does.
            pool.connection_kwargs["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
            self._connection: Any = pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the options in the URL of {harmless(str(Address.of(url)))} are not understood: "
                f"{self._clean(str(error))}"
            ) from None
        try:
            with self._told():
                self._connection.connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._broken = True
        self._connection.disconnect()

    def command(self, *words: str | bytes | int) -> Any:
        """One command, and its answer. Raises Refused, Lost."""
        self.send([words])
        return self.receive()

    def send(self, commands: Sequence[Command]) -> None:
        """Sends several commands; each must be received. Raises Lost."""
        with self._told():
            if self._broken:
                raise Lost("the connection is closed")
            self._connection.send_packed_command(self._connection.pack_commands(commands))

    def receive(self) -> Any:
        """The next answer. Raises Refused, Lost."""
        with self._told():
            if self._broken:
                raise Lost("the connection is closed")
            return self._connection.read_response()

    def receive_all(self, count: int) -> list[Any]:
        """That many answers; Refused stands among them where it is one. Raises Lost."""
        answers: list[Any] = []
        for _ in range(count):
            try:
                answers.append(self.receive())
            except Refused as error:
                answers.append(error)
        return answers

    def atomically(self, *commands: Command) -> list[Any]:
        """MULTI, the commands, EXEC; returns their answers. Raises Refused, Lost."""
        self.send([("MULTI",), *commands, ("EXEC",)])
        answers = self.receive_all(len(commands) + 2)
        for answer in answers:
            if isinstance(answer, Refused):
                raise answer
        done: list[Any] = answers[-1]
        for answer in done:
            if isinstance(answer, Exception):
                raise self._refusal(answer)
        return done

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO; empty where the user may not see it. Raises Lost."""
        try:
            answer = self.command("INFO", section)
        except Refused:
            return {}
        lines = answer.decode("utf-8", "replace").splitlines() if isinstance(answer, bytes) else []
        return dict(line.split(":", 1) for line in lines if ":" in line)

    @property
    def socket(self) -> socket.socket:
        """What is below: all that was asked for is received, so nothing of it is buffered above."""
        taken: socket.socket | None = self._connection._sock
        if taken is None:
            raise Lost("the connection is closed")
        return taken

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns the client's errors into `Refused` and `Lost`."""
        errors = self._redis.exceptions
        try:
            yield
        except (errors.ConnectionError, errors.TimeoutError, OSError) as error:
            if isinstance(error, errors.AuthenticationError):
                raise self._refusal(error) from None
            self._broken = True
            raise Lost(self._clean(str(error))) from None
        except errors.ResponseError as error:
            raise self._refusal(error) from None
        except errors.RedisError as error:
            self._broken = True
            raise Lost(self._clean(str(error))) from None

    def _refusal(self, error: Exception) -> Refused:
        errors = self._redis.exceptions
        text = self._clean(str(error))
        word = text.partition(" ")[0]
        if isinstance(error, errors.NoPermissionError) or "executing the script can't run" in text:
            code = "NOPERM"
        elif isinstance(error, errors.OutOfMemoryError):
            code = "OOM"
        elif isinstance(error, errors.ReadOnlyError):
            code = "READONLY"
        elif isinstance(error, errors.AuthenticationError):
            code = "AUTH"
        elif text.lower().startswith(("unknown command", "unknown subcommand")):
            code = "UNKNOWN"
        else:
            code = word if word.isalpha() and word.isupper() else ""
        return Refused(code, text)

    def _clean(self, text: str) -> str:
        """What the server or the client says, without arguments: AUTH has the password among them."""
        text = _ARGUMENTS.sub("", text)
        for secret in self._secrets:
            text = text.replace(secret, "…")
        text = harmless(text)
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def select(session: Session, database: int) -> int:
    """Selects a logical database; returns how many keys it has. Raises Refused where there is no such one, Lost."""
    session.command("SELECT", database)
    return int(session.command("DBSIZE"))


def version_of(info: dict[str, str]) -> tuple[int, ...]:
    """The server's version from INFO, to compare; empty where it is not known."""
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", info.get("redis_version", ""))
    return tuple(map(int, numbers.groups())) if numbers else ()
