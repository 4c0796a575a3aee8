"""PostgreSQL: dumped by its own program, restored into a scratch database that takes the live one's name."""

from __future__ import annotations

from holdfast.sources.postgres.source import PostgresSource, PostgresSwap, PostgresSwaps, PostgresTarget

__all__ = ["PostgresSource", "PostgresSwap", "PostgresSwaps", "PostgresTarget"]
