"""SQLite databases: read through a snapshot, restored through SQLite itself."""

from __future__ import annotations

from holdfast.sources.sqlite.source import SqliteSource, SqliteSwap, SqliteTarget

__all__ = ["SqliteSource", "SqliteSwap", "SqliteTarget"]
