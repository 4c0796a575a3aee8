"""The kinds of databases: for each how it is read, where it goes back to, and how a restore switches it.

A kind of database is a module in `holdfast.sources`, and one case in each function here. Modules of servers are
imported when they are asked for: most services have one kind of database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.clock import Clock
from holdfast.config import DatabaseSpec, Settings
from holdfast.errors import ConfigError, RestoreError
from holdfast.model import SourceRecord
from holdfast.sources.base import Restorable, Source
from holdfast.sources.files._swap import RenameSwap
from holdfast.sources.sqlite import SqliteSource, SqliteSwap, SqliteTarget

if TYPE_CHECKING:
    from sqlalchemy import URL

    from holdfast.transaction import SwapKind


def database_source(spec: DatabaseSpec, settings: Settings, clock: Clock) -> Source:
    """How a configured database is read. Raises ConfigError for a kind that this version does not know."""
    timeout = settings.database_timeout
    match spec.dialect:
        case "sqlite":
            path = spec.sqlite_path(settings.root)
            return SqliteSource(spec.name, path, settings.root, timeout=timeout, clock=clock)
        case "postgresql":
            from holdfast.sources.postgres import PostgresSource

            return PostgresSource(spec.name, spec.server_url, timeout=timeout, clock=clock)
        case "mysql" | "mariadb":
            from holdfast.sources.mysql import MySqlSource

            return MySqlSource(spec.name, spec.server_url, timeout=timeout, clock=clock)
        case "redis":
            from holdfast.sources.redis import RedisSource

            return RedisSource(spec.name, spec.server_url, timeout=timeout, clock=clock)
    raise ConfigError(
        f"database {spec.name} is {spec.dialect}, which this version cannot back up",
        hint="Back up the components without it: --component models --component config.",
    )


def server_target(
    spec: DatabaseSpec, settings: Settings, record: SourceRecord, *, create_database: bool
) -> Restorable:
    """Where a server's dump goes back to: the database that is configured under its name.

    `create_database`: it is made where there is none. Raises RestoreError where the dump is of another kind.
    """
    timeout = settings.database_timeout
    if record.kind == spec.dialect or {record.kind, spec.dialect} == {"mysql", "mariadb"}:
        match record.kind:
            case "postgresql":
                from holdfast.sources.postgres import PostgresTarget

                return PostgresTarget(
                    spec.server_url, record.moment, timeout=timeout, create_database=create_database
                )
            case "mysql" | "mariadb":
                from holdfast.sources.mysql import MySqlTarget

                return MySqlTarget(
                    spec.server_url, record.moment, timeout=timeout, create_database=create_database
                )
            case "redis":
                from holdfast.sources.redis import RedisTarget

                return RedisTarget(spec.server_url, record.moment, timeout=timeout)
    raise RestoreError(
        f"database {record.name} is {record.kind} in the backup and {spec.dialect} here",
        hint="Check DATABASE_URL, or restore elsewhere with --target DIR.",
    )


def sqlite_target(path: Path, settings: Settings, *, create_parents: bool) -> Restorable:
    """Where a SQLite database goes back to."""
    return SqliteTarget(path, timeout=settings.database_timeout, create_parents=create_parents)


class SwapKinds(Mapping[str, "SwapKind"]):
    """Every kind of swap that a restore journal may name.

    A journal holds no password: a server's swaps find theirs in the settings of the process that goes on with them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __getitem__(self, kind: str) -> SwapKind:
        timeout = self._settings.database_timeout
        match kind:
            case RenameSwap.kind:
                return RenameSwap
            case SqliteSwap.kind:
                return SqliteSwap
            case "postgresql":
                from holdfast.sources.postgres import PostgresSwaps

                return PostgresSwaps(self._urls, timeout=timeout)
            case "mysql":
                from holdfast.sources.mysql import MySqlSwaps

                return MySqlSwaps(self._urls, timeout=timeout)
            case "redis":
                from holdfast.sources.redis import RedisSwaps

                return RedisSwaps(self._urls, timeout=timeout)
        raise KeyError(kind)

    def __iter__(self) -> Iterator[str]:
        return iter((RenameSwap.kind, SqliteSwap.kind, "postgresql", "mysql", "redis"))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _urls(self) -> list[URL]:
        return [spec.server_url for spec in self._settings.databases if spec.dialect != "sqlite"]
