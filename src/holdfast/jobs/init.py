"""Set up a service for backups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.config import DatabaseSpec, Settings
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
    found = [f"database {database.name}: {database.told}" for database in databases]
    found += [
        f"{spec.component}: {', '.join(os.path.relpath(path, settings.root) for path in spec.paths) or 'none found'}"
        for spec in settings.files
    ]
    return Initialized(config, key, tuple(found))


@dataclass(frozen=True, slots=True)
class _Database:
    """A table of ``holdfast.toml``."""

    name: str
    key: str
    """Its one line."""
    told: str
    """What a person is told of it. No secret."""


def _databases(installation: Installation) -> list[_Database]:
    try:
        found = installation.settings.databases
    except ConfigError:
        # Several, and nothing says which: all are listed, and the user deletes what is too much.
        root = installation.settings.root
        paths = sorted(path for path in root.iterdir() if path.suffix in (".db", ".sqlite", ".sqlite3"))
        urls = [f"sqlite:///{path.name}" for path in paths]
        return [_Database(f"db{number}", f'url = "{url}"', url) for number, url in enumerate(urls, 1)]
    return [_database(spec, installation.settings) for spec in found]


def _database(spec: DatabaseSpec, settings: Settings) -> _Database:
    if spec.dialect == "sqlite":
        url = f"sqlite:///{os.path.relpath(spec.sqlite_path(settings.root), settings.root)}"
        return _Database(spec.name, f'url = "{url}"', url)
    # A server's URL holds a password, and this file is read and committed by many.
    table = settings.database_tables.get(spec.name)
    variable = (table.env if table else None) or "DATABASE_URL"
    return _Database(spec.name, f'env = "{variable}"', f"{spec.dialect}, from {variable}")


def _ignore(root: Path) -> None:
    """Keeps key and backups out of version control, where there is any."""
    if not (root / ".git").exists():
        return
    path = root / ".gitignore"
    lines = path.read_text().splitlines() if path.exists() else []
    missing = [name for name in _IGNORED if name not in lines]
    if missing:
        path.write_text("\n".join([*lines, *missing]) + "\n")


def _template(databases: list[_Database]) -> str:
    tables = (
        "\n".join(f"[database.{database.name}]\n{database.key}\n" for database in databases) or _NO_DATABASE
    )
    return _TEMPLATE.replace("@databases@", tables.rstrip())


_NO_DATABASE = """\
# [database.main]
# url = "sqlite:///service.db"     # or: env = "DATABASE_URL"
"""

_TEMPLATE = """\
# Holdfast's settings for this service. What is commented out shows the default, or an example.
# Paths are relative to the directory that Holdfast is run in. The environment wins over this file:
# BACKUP_DIR, BACKUP_RETENTION_DAYS, BACKUP_COMPRESSION_LEVEL, BACKUP_MAX_SIZE_GB, BACKUP_ENCRYPT,
# ENCRYPTION_KEY, DATABASE_URL, NOTIFICATION_EMAIL and their like. `holdfast check` tells whether all of it works.

# tags = ["production"]            # written into every backup
# key_file = "holdfast.key"        # the key; ENCRYPTION_KEY wins over it
# database_timeout = 30            # seconds that a locked database, or a server's answer, is waited for

[backup]
# directory = "./backups"          # better on another disk
# retention_days = 30
# compression_level = 9            # 0 to 9, as in gzip
# max_size_gb = 10.0               # a backup stops before it grows larger
# encrypt = true
# format = "archive"               # or "dedup": each piece of content once, for large models and many backups
# parity = false                   # of "dedup": flipped bits and lost sectors can be mended
# trust_writers = []               # of "dedup": other hosts whose chunks count as stored
# include_models = true            # what a backup holds when no component is named
# include_config = true
# include_logs = false
# schedule = "daily"               # of a schedule that names none: hourly, daily, weekly, monthly, or a cron line

# The databases, each with a name of its own. That of a server is named by a variable, for its URL holds a password:
# postgresql://user:password@host/name, mysql://… or mariadb://…, redis://user:password@host:6379/0
@databases@

# [database.features]
# env = "REDIS_URL"

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

# Who is told what a schedule did. The mail server's password is the variable SMTP_PASSWORD.
# `holdfast notify test` sends a test.
[notify]
# email = "ops@example.com"
# smtp_server = "smtp.gmail.com"
# smtp_port = 587
# smtp_username = "backups@example.com"
# apprise = ["slack://…"]          # whoever knows such a URL can use it: BACKUP_APPRISE_URLS in .env keeps it apart
# ping_url = "https://hc-ping.com/…"
# alarm_hours = 26                 # so long without a good backup is an alarm

# For Prometheus.
[metrics]
# port = 9477                      # of the scheduler; 0 for none, the default
# address = "127.0.0.1"
# textfile = "/var/lib/node_exporter/textfile_collector/holdfast.prom"

# How many backups stay that are the newest of their period, in the place of retention_days. By default none of them.
[retention]
# last = 3
# hourly = 24
# daily = 7
# weekly = 5
# monthly = 12
# yearly = 10

[log]
# format = "text"                  # or "json": how the scheduler writes its log

[drill]
# command = "python check_restored.py"
"""
