"""Redis: one logical database as of one moment, restored into a spare one that changes places with it."""

from __future__ import annotations

from holdfast.sources.redis.source import RedisSource, RedisSwap, RedisSwaps, RedisTarget

__all__ = ["RedisSource", "RedisSwap", "RedisSwaps", "RedisTarget"]
