"""The contract's format: a backup is one tar.gz file, encrypted or not, with a metadata file beside it."""

from __future__ import annotations

from holdfast.repository._names import archive_id
from holdfast.repository._seal import Seal
from holdfast.repository.archive.repository import ArchiveRepository

__all__ = ["ArchiveRepository", "Seal", "archive_id"]
