"""The deduplicating format: content is stored once, whichever backup, file or host it came from."""

from __future__ import annotations

from holdfast.repository.dedup._collection import Collected
from holdfast.repository.dedup.repository import DedupRepository

__all__ = ["Collected", "DedupRepository"]
