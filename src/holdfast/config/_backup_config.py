"""The contract's `BackupConfig`."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.config._origins import Origin, build
from holdfast.config._refusals import Location

_KEYS = {
    "retention_days": "retention_days",
    "compression_level": "compression_level",
    "max_backup_size_gb": "max_size_gb",
    "include_models": "include_models",
    "include_config": "include_config",
    "include_logs": "include_logs",
    "encrypt_backups": "encrypt",
    "backup_schedule": "schedule",
}
"""The contract's names, and those of ``[backup]`` in ``holdfast.toml``."""


@dataclass
class BackupConfig:
    """How backups are made. Raises ConfigError, naming the field and what it may be, for anything else.

    Where one is given in code, all of it wins over the environment and over ``holdfast.toml``.
    """

    retention_days: int = 30
    """Days, 1 or more."""
    compression_level: int = 9
    """As gzip users know it, 0 to 9."""
    max_backup_size_gb: float = 10.0
    """A GB is 10⁹ bytes."""
    include_models: bool = True
    include_config: bool = True
    include_logs: bool = False
    encrypt_backups: bool = True
    backup_schedule: str = "daily"
    """``hourly``, ``daily``, ``weekly``, ``monthly``, or the five fields of a cron line."""

    def __post_init__(self) -> None:
        checked = build(origin_of(self)).tables.backup
        for field, key in _KEYS.items():
            setattr(self, field, getattr(checked, key))


def origin_of(config: BackupConfig) -> Origin:
    """The settings that it gives."""
    table = {key: getattr(config, field) for field, key in _KEYS.items()}
    return Origin(_name, {"backup": table})


def _name(location: Location) -> str:
    return next(f"BackupConfig.{field}" for field, key in _KEYS.items() if key == location[2])
