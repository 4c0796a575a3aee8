"""Set up a service for backups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.crypto import X25519Identity, write_key_file
from holdfast.errors import ConfigError
from holdfast.installation import Installation

CONFIG_NAME = "holdfast.toml"
KEY_NAME = "holdfast.key"

_IGNORED = ("holdfast.key", "backups/")


@dataclass(frozen=True, slots=True)
class Initialized:
    """What was made."""

    config: Path
    key: Path | None
    """None where a key is configured already."""
    found: tuple[str, ...]
    """What a backup would hold, a line each."""


def init(installation: Installation) -> Initialized:
    """Writes a ``holdfast.toml`` that explains itself and, unless there is one, a key.

    Raises ConfigError when there is a ``holdfast.toml`` already.
    """
    settings = installation.settings
    config = settings.root / CONFIG_NAME
    if os.path.lexists(config):
        raise ConfigError(
            f"{config} exists already", hint="Edit it; `holdfast check` tells whether it is right."
        )
    databases = _databases(installation)
    key = None
    if settings.encryption_key is None and settings.key_file is None:
        key = settings.root / KEY_NAME
        write_key_file(key, X25519Identity.generate(), installation.clock())
        _ignore(settings.root)
    fd = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w") as file:
        file.write(_template(databases))
    found = [f"database {name}: {where}" for name, where in databases]
    found += [
        f"{spec.component}: {', '.join(os.path.relpath(path, settings.root) for path in spec.paths) or 'none found'}"
        for spec in settings.files
    ]
    return Initialized(config, key, tuple(found))


def _databases(installation: Installation) -> list[tuple[str, str]]:
    try:
        found = installation.settings.databases
    except ConfigError:
        # Several, and nothing says which: all are listed, and the user deletes what is too much.
        root = installation.settings.root
        paths = sorted(path for path in root.iterdir() if path.suffix in (".db", ".sqlite", ".sqlite3"))
        return [(f"db{number}", f"sqlite:///{path.name}") for number, path in enumerate(paths, 1)]
    root = installation.settings.root
    return [
        (spec.name, f"sqlite:///{os.path.relpath(spec.sqlite_path(root), root)}")
        for spec in found
        if spec.dialect == "sqlite"
    ]


def _ignore(root: Path) -> None:
    """Keeps key and backups out of version control, where there is any."""
    if not (root / ".git").exists():
        return
    path = root / ".gitignore"
    lines = path.read_text().splitlines() if path.exists() else []
    missing = [name for name in _IGNORED if name not in lines]
    if missing:
        path.write_text("\n".join([*lines, *missing]) + "\n")


def _template(databases: list[tuple[str, str]]) -> str:
    tables = "\n".join(f'[database.{name}]\nurl = "{url}"\n' for name, url in databases) or _NO_DATABASE
    return _TEMPLATE.replace("@databases@", tables.rstrip())


_NO_DATABASE = """\
# [database.main]
# url = "sqlite:///service.db"     # or: env = "DATABASE_URL"
"""

_TEMPLATE = """\
# Holdfast's settings for this service. What is commented out shows the default.
# Paths are relative to the directory that Holdfast is run in. The environment wins over this file:
# BACKUP_DIR, BACKUP_RETENTION_DAYS, BACKUP_COMPRESSION_LEVEL, BACKUP_MAX_SIZE_GB, BACKUP_ENCRYPT,
# ENCRYPTION_KEY, DATABASE_URL. `holdfast check` tells whether all of it works.

# tags = ["production"]            # written into every backup
# key_file = "holdfast.key"        # the key; ENCRYPTION_KEY wins over it
# database_timeout = 30            # seconds that a locked database is waited for

[backup]
# directory = "./backups"          # better on another disk
# retention_days = 30
# compression_level = 9            # 0 to 9, as in gzip
# max_size_gb = 10.0               # a backup stops before it grows larger
# encrypt = true
# include_models = true            # what a backup holds when no component is named
# include_config = true
# include_logs = false

# The databases, each with a name of its own.
@databases@

# Without paths, Holdfast takes models/, logs/ and the usual configuration files.
[models]
# paths = ["models", "/srv/models"]
# exclude = ["*.tmp", "cache/"]    # a name at any depth; with a slash in it, a path; ending in one, a directory

[config]
# paths = [".env", "*.toml", "*.yaml", "*.yml", "Dockerfile", "docker-compose.yml", "config"]

[logs]
# paths = ["logs"]

# Commands run before and after each backup, without a shell.
[hooks]
# before = ["systemctl stop trainer"]
# after = [["systemctl", "start", "trainer"]]
"""
