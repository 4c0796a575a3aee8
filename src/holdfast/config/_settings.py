"""`Settings`, and how they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from holdfast.config._backup_config import BackupConfig, origin_of
from holdfast.config._databases import DatabaseSpec, find_databases
from holdfast.config._files import FilesSpec, absolute, check_apart, find_files
from holdfast.config._origins import CONFIG_VARIABLE, build, from_toml, from_variables, read_dotenv
from holdfast.config._tables import DatabaseTable, FilesTable, Tables
from holdfast.errors import ConfigError
from holdfast.model import COMPONENTS, BackupFormat, Component

CONFIG_FILE = "holdfast.toml"
KEY_FILE = "holdfast.key"

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. All paths are absolute."""

    root: Path
    """The service root, links resolved."""
    config_file: Path | None
    """The ``holdfast.toml`` that was read."""
    backup_dir: Path
    retention_days: int
    compression_level: int
    max_bytes: int
    encrypt: bool
    format: BackupFormat
    """Of new backups."""
    trust_writers: tuple[str, ...]
    """Hosts, by public signing key or fingerprint, whose chunks count as stored."""
    parity: bool
    """Whether what new backups store can be mended. Only of the deduplicating format."""
    include_models: bool
    include_config: bool
    include_logs: bool
    schedule: str
    tags: tuple[str, ...]
    database_timeout: float
    """Seconds."""
    encryption_key: SecretStr | None
    """Wins over `key_file`."""
    key_file: Path | None
    """An age identity file: the one configured, be it there or not, or the ``holdfast.key`` that is."""
    hooks_before: tuple[Argv, ...] = field(repr=False)
    hooks_after: tuple[Argv, ...] = field(repr=False)
    log_level: str | None
    """None: nothing but what commands tell anyway."""
    database_url: SecretStr | None = field(repr=False)
    """``DATABASE_URL``; ask `databases`, which knows what it stands for."""
    database_tables: Mapping[str, DatabaseTable] = field(repr=False)
    file_tables: Mapping[Component, FilesTable] = field(repr=False)
    notification_email: str | None
    """Who is told what a schedule did, where the schedule names nobody."""
    smtp_server: str
    smtp_port: int
    smtp_username: str | None
    smtp_password: SecretStr | None = field(repr=False)
    apprise_urls: tuple[SecretStr, ...] = field(repr=False)
    ping_url: SecretStr | None = field(repr=False)
    """A dead man's switch. Secret, because whoever knows it can keep it quiet."""
    alarm_hours: float | None
    """So long without a good backup is an alarm."""
    metrics_port: int | None
    metrics_address: str
    metrics_textfile: Path | None
    keep: Mapping[str, int]
    """Of ``last``, ``hourly``, ``daily``, ``weekly``, ``monthly`` and ``yearly`` those with a number above 0."""
    log_format: Literal["text", "json"]
    drill_command: Argv | None = field(repr=False)
    drill_timeout: float
    """Seconds that it may take."""

    @property
    def databases(self) -> tuple[DatabaseSpec, ...]:
        """The databases there are to back up, ordered by name; looked for when asked.

        Raises ConfigError for a URL that cannot be read, for a variable that is not set, and when it cannot
        be told which database is meant.
        """
        return find_databases(self.root, self.database_url, self.database_tables)

    @property
    def files(self) -> tuple[FilesSpec, ...]:
        """One for each of models, config and logs, whether included or not; looked for when asked."""
        private = {self.root / CONFIG_FILE, self.root / KEY_FILE, self.config_file, self.key_file}
        never = sorted(path for path in private if path is not None)
        return tuple(find_files(self.root, name, table, never) for name, table in self.file_tables.items())

    def default_components(self) -> tuple[Component, ...]:
        """What a backup holds that names no components: a database, if there is one, and what is included.

        Raises ConfigError as `databases` does.
        """
        included = {
            "database": bool(self.databases),
            "models": self.include_models,
            "config": self.include_config,
            "logs": self.include_logs,
        }
        return tuple(component for component in COMPONENTS if included[component])

    def check_paths(self) -> None:
        """Raises ConfigError when the backup directory, or one source of files, lies inside another."""
        check_apart(self.backup_dir, self.files)


def load_settings(
    root: Path | None = None, environ: Mapping[str, str] | None = None, config: BackupConfig | None = None
) -> Settings:
    """The settings of the service in `root` (the current directory), from `environ` (the process's own).

    The order of precedence stands in `holdfast.config`. Raises ConfigError, naming the setting and where it
    was set. Nothing is created, no database is opened, and whether the key fits is not asked.
    """
    root = Path(root or ".").resolve()
    if not root.is_dir():
        raise ConfigError(f"the service root {root} is not a directory")
    environ = os.environ if environ is None else environ
    dotenv = read_dotenv(root / ".env", environ)

    def variable(name: str) -> str:
        values = (environ.get(name, ""), dotenv.get(name, ""))
        return next((value for value in values if value.strip()), "")

    origins = [from_variables(environ), from_variables(dotenv, f" in {root / '.env'}")]
    if config is not None:
        origins.insert(0, origin_of(config))
    config_file = _config_file(root, variable(CONFIG_VARIABLE))
    if config_file is not None:
        origins.append(from_toml(config_file))
    everything = build(*origins)

    tables, backup = everything.tables, everything.tables.backup
    if backup.parity and backup.format != "dedup":
        raise ConfigError(
            "BACKUP_PARITY, or parity in [backup], is true, and archives have no parity",
            hint='Set BACKUP_FORMAT=dedup (format = "dedup" in [backup]), or leave parity off.',
        )
    return Settings(
        root=root,
        config_file=config_file,
        backup_dir=absolute(root, backup.directory),
        retention_days=backup.retention_days,
        compression_level=backup.compression_level,
        max_bytes=max(1, round(backup.max_size_gb * 10**9)),
        encrypt=backup.encrypt,
        format=backup.format,
        trust_writers=backup.trust_writers,
        parity=backup.parity,
        include_models=backup.include_models,
        include_config=backup.include_config,
        include_logs=backup.include_logs,
        schedule=backup.schedule,
        tags=tuple(dict.fromkeys(tables.tags)),
        database_timeout=tables.database_timeout,
        encryption_key=everything.variables.encryption_key,
        key_file=_key_file(root, tables),
        hooks_before=tables.hooks.before,
        hooks_after=tables.hooks.after,
        log_level=everything.variables.log_level,
        database_url=everything.variables.database_url,
        database_tables={
            name: table.model_copy(update={"url": SecretStr(url)})
            if table.env is not None and (url := variable(table.env))
            else table
            for name, table in tables.database.items()
        },
        file_tables={"models": tables.models, "config": tables.config, "logs": tables.logs},
        notification_email=tables.notify.email,
        smtp_server=tables.notify.smtp_server,
        smtp_port=tables.notify.smtp_port,
        smtp_username=tables.notify.smtp_username,
        smtp_password=everything.variables.smtp_password,
        apprise_urls=tables.notify.apprise,
        ping_url=tables.notify.ping_url,
        alarm_hours=tables.notify.alarm_hours,
        metrics_port=tables.metrics.port or None,
        metrics_address=tables.metrics.address,
        metrics_textfile=absolute(root, tables.metrics.textfile) if tables.metrics.textfile else None,
        keep={rule: count for rule, count in tables.retention.model_dump().items() if count},
        log_format=tables.log.format,
        drill_command=tables.drill.command,
        drill_timeout=tables.drill.timeout,
    )


def _config_file(root: Path, named: str) -> Path | None:
    if named:
        path = absolute(root, named)
        if not os.path.exists(path):
            raise ConfigError(f"{CONFIG_VARIABLE} names {path}, which is not there")
        return path
    path = root / CONFIG_FILE
    return path if os.path.exists(path) else None


def _key_file(root: Path, tables: Tables) -> Path | None:
    if tables.key_file is not None:
        return absolute(root, tables.key_file)
    path = root / KEY_FILE
    return path if os.path.exists(path) else None
