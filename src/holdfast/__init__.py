"""Holdfast backs up a machine-learning service as one thing, and brings it back as one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.version import __version__

__all__ = [
    "BackupConfig",
    "BackupManager",
    "BackupMetadata",
    "BackupScheduler",
    "HoldfastError",
    "__version__",
]

if TYPE_CHECKING:
    from holdfast.config import BackupConfig
    from holdfast.errors import HoldfastError
    from holdfast.manager import BackupManager
    from holdfast.model import BackupMetadata
    from holdfast.scheduler import BackupScheduler

_HOMES = {
    "BackupConfig": "holdfast.config",
    "BackupManager": "holdfast.manager",
    "BackupMetadata": "holdfast.model",
    "BackupScheduler": "holdfast.scheduler",
    "HoldfastError": "holdfast.errors",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `holdfast --help` must not pay for pydantic and cryptography.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
