"""The database: `DATABASE_URL` from the environment or `.env`, else a SQLite file beside it."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT = 30  # seconds; a restore holds SQLite's write lock for as long as it copies pages


class DatabaseSettings(BaseSettings):
    """The environment wins over `.env`, as it does for Holdfast, so that both mean the same database."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    database_url: str = "sqlite:///./iit_ml_service.db"


def _set_pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")  # readers, a backup among them, never wait for a writer
    cursor.close()


engine = create_engine(DatabaseSettings().database_url, pool_pre_ping=True)
if engine.dialect.name == "sqlite":
    event.listen(engine, "connect", _set_pragmas)
