"""MySQL and MariaDB: dumped by their own program, restored into a scratch schema whose tables change places."""

from __future__ import annotations

from holdfast.sources.mysql.source import MySqlSource, MySqlSwap, MySqlSwaps, MySqlTarget

__all__ = ["MySqlSource", "MySqlSwap", "MySqlSwaps", "MySqlTarget"]
