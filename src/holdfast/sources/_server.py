"""Where a database server is, without the password: in messages, in journals; and the way back to the password."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from holdfast.errors import RestoreError

if TYPE_CHECKING:
    from sqlalchemy import URL

Urls = Callable[[], "Sequence[URL]"]
"""The URLs of the servers' databases that are configured now."""

_TEXT_LIMIT = 1000
_OTHER_NAMES = {"mariadb": "mysql", "postgres": "postgresql", "rediss": "redis"}
"""A URL may call the same server one thing today and another tomorrow."""


@runtime_checkable
class Rehearsable(Protocol):
    """A swap whose staged state one can connect to before it is applied: for drills."""

    def scratch_url(self) -> URL:
        """Where that is, with the password. Raises RestoreError when the server is not configured any more."""
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """A database on a server."""

    dialect: str
    host: str
    """A name, an address, the directory of a socket; empty for the server's default."""
    port: int
    """0 for the server's default."""
    database: str

    @classmethod
    def of(cls, url: URL) -> Address:
        """The address that a URL leads to. A socket in its query (``?host=/run/postgresql``) counts as host."""
        query = url.query
        host = next(
            (str(query[key]) for key in ("host", "unix_socket", "unix_socket_path") if query.get(key)),
            url.host or "",
        )
        dialect = _OTHER_NAMES.get(url.get_backend_name(), url.get_backend_name())
        return cls(dialect, host, url.port or 0, url.database or "")

    @classmethod
    def from_journal(cls, state: Any) -> Address:
        """The inverse of `to_journal`. Raises KeyError, TypeError, ValueError."""
        texts = [state["dialect"], state["host"], state["database"]]
        port = state["port"]
        if not all(isinstance(text, str) and len(text) <= _TEXT_LIMIT for text in texts):
            raise TypeError("an address is made of short texts")
        if type(port) is not int or not 0 <= port < 1 << 16:
            raise ValueError("an address has a port")
        return cls(texts[0], texts[1], port, texts[2])

    def to_journal(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.dialect}://{self.host}{port}/{self.database}"

    def find(self, urls: Urls) -> URL:
        """The configured URL that leads here. Raises RestoreError when none does."""
        for url in urls():
            if Address.of(url) == self:
                return url
        raise RestoreError(
            f"a restore of {self} is unfinished, and that database is not configured any more",
            hint="Set DATABASE_URL, or the URL in holdfast.toml, to what it was; then run `holdfast recover`.",
        )
