"""The contract's format: every backup is one tar.gz file, encrypted or not, with a metadata file beside it."""

from __future__ import annotations

from holdfast.repository.archive.repository import ArchiveRepository, Seal

__all__ = ["ArchiveRepository", "Seal"]
