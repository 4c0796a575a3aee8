"""Which databases there are to back up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from holdfast.config._tables import DatabaseTable
from holdfast.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

MAIN = "main"
"""The name of the database that ``DATABASE_URL`` means, or that was found."""

_SUFFIXES = (".db", ".sqlite3", ".sqlite")
_TRUE = ("true", "yes", "on", "y", "t", "1")
"""What SQLAlchemy takes for true."""
_OTHER_NAMES = {"postgres": "postgresql", "rediss": "redis", "unix": "redis"}
_EXAMPLE = "A URL reads dialect://…; for SQLite sqlite:///relative.db or sqlite:////absolute.db."


@dataclass(frozen=True, slots=True)
class DatabaseSpec:
    """A database to back up."""

    name: str
    url: URL | None = field(repr=False)
    """None for a SQLite file that was found."""
    file: Path | None = None
    """That file."""

    @property
    def dialect(self) -> str:
        """``sqlite``, ``postgresql``…: what comes before a driver, by its usual name."""
        name = "sqlite" if self.url is None else self.url.get_backend_name()
        return _OTHER_NAMES.get(name, name)

    @property
    def server_url(self) -> URL:
        """The URL of a database on a server, without a driver. Raises ConfigError when it names no database."""
        assert self.url is not None
        if not self.url.database and self.dialect != "redis":
            raise ConfigError(
                f"the URL of database {self.name} names no database",
                hint=f"It reads {self.dialect}://user:password@host/database.",
            )
        return self.url.set(drivername=self.url.get_backend_name())

    def sqlite_path(self, root: Path) -> Path:
        """The absolute path of a SQLite database; a relative one is relative to `root`.

        Reads a URL as SQLAlchemy's SQLite dialects do, and with ``uri=true`` a file name as SQLite does
        (https://www.sqlite.org/uri.html). Raises ConfigError for another dialect, for a database in memory,
        and for a URL with a host.
        """
        if self.url is None:
            assert self.file is not None
            return self.file
        if self.dialect != "sqlite":
            raise ConfigError(f"database {self.name} is {self.dialect}, and no file")
        host = self.url.host or self.url.username
        path = self.url.database or ""
        query = self.url.query
        if path.startswith("file:") and str(query.get("uri")).lower() in _TRUE:
            parts = urlsplit(path)
            host = host or parts.netloc.removeprefix("localhost")
            path = unquote(parts.path, errors="surrogateescape") if query.get("mode") != "memory" else ""
        if host:
            raise ConfigError(f"the URL of database {self.name} names a host: SQLite has none", hint=_EXAMPLE)
        if path in ("", ":memory:"):
            raise ConfigError(f"database {self.name} is in memory: nothing to back up", hint=_EXAMPLE)
        return Path(os.path.normpath(root / path))


def find_databases(
    root: Path, url: SecretStr | None, tables: Mapping[str, DatabaseTable]
) -> tuple[DatabaseSpec, ...]:
    """What is configured, ordered by name, else what lies in the root; empty when there is nothing.

    `url` is ``DATABASE_URL``. Where ``holdfast.toml`` has tables, it gives the URL of the only one, or of the
    one called ``main``; a table with an ``env`` keeps to its own variable. Where it fits none of them this
    raises ConfigError, for the database that the service uses would be missing from every backup.
    """
    urls = {name: _url_of(name, table) for name, table in tables.items()}
    if url is not None and url not in urls.values():
        urls[_heir(tables)] = url
    if urls:
        return tuple(DatabaseSpec(name, _parse(name, urls[name])) for name in sorted(urls))
    return _lying_in(root)


def _url_of(name: str, table: DatabaseTable) -> SecretStr:
    if table.url is None:
        raise ConfigError(
            f"database {name} takes its URL from {table.env}, which is not set",
            hint=f"Set {table.env} in the environment or in .env.",
        )
    return table.url


def _heir(tables: Mapping[str, DatabaseTable]) -> str:
    written = [name for name, table in tables.items() if table.env is None]
    if not tables or MAIN in written:
        return MAIN
    if len(tables) == len(written) == 1:
        return written[0]
    raise ConfigError(
        "DATABASE_URL is set, and holdfast.toml does not say which database that is: "
        + ", ".join(sorted(tables)),
        hint='Add env = "DATABASE_URL" to that one, in place of its url, or as a table of its own.',
    )


def _lying_in(root: Path) -> tuple[DatabaseSpec, ...]:
    try:
        found = sorted(
            path
            for path in root.iterdir()
            if path.suffix in _SUFFIXES and path.name[0] != "." and path.is_file()
        )
    except OSError as error:
        raise ConfigError(f"{root} cannot be searched for a database: {error.strerror}") from error
    if len(found) > 1:
        raise ConfigError(
            f"{root} holds {len(found)} databases: {', '.join(path.name for path in found[:5])}",
            hint=f"Choose with DATABASE_URL=sqlite:///{found[0].name}, "
            "or name each of them in holdfast.toml: [database.main] with its url.",
        )
    # Without a URL: SQLAlchemy, which would parse one, takes longer to load than everything else.
    return tuple(DatabaseSpec(MAIN, None, path) for path in found)


def _parse(name: str, url: SecretStr) -> URL:
    # Imported here because it takes longer than everything else in this package.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url.get_secret_value().strip())
    except (ArgumentError, ValueError):
        raise ConfigError(f"the URL of database {name} cannot be read", hint=_EXAMPLE) from None
