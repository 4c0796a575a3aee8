"""Directories and files: models, configuration, logs."""

from __future__ import annotations

from holdfast.sources.files._staging import FilesTarget, make_empty_directory
from holdfast.sources.files._swap import RenameSwap
from holdfast.sources.files.source import FilesSource

__all__ = ["FilesSource", "FilesTarget", "RenameSwap", "make_empty_directory"]
