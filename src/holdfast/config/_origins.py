"""Where settings come from: the environment, ``.env``, ``holdfast.toml``; and how they become one."""

from __future__ import annotations

import io
import os
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables
from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from holdfast.config._refusals import Location, refusal
from holdfast.config._tables import Tables, Variables
from holdfast.errors import ConfigError

VARIABLES: dict[str, Location] = {
    "BACKUP_DIR": ("tables", "backup", "directory"),
    "BACKUP_RETENTION_DAYS": ("tables", "backup", "retention_days"),
    "BACKUP_COMPRESSION_LEVEL": ("tables", "backup", "compression_level"),
    "BACKUP_MAX_SIZE_GB": ("tables", "backup", "max_size_gb"),
    "BACKUP_ENCRYPT": ("tables", "backup", "encrypt"),
    "BACKUP_FORMAT": ("tables", "backup", "format"),
    "BACKUP_TRUST_WRITERS": ("tables", "backup", "trust_writers"),
    "BACKUP_PARITY": ("tables", "backup", "parity"),
    "ENCRYPTION_KEY": ("variables", "encryption_key"),
    "DATABASE_URL": ("variables", "database_url"),
    "LOG_LEVEL": ("variables", "log_level"),
    "LOG_FORMAT": ("tables", "log", "format"),
    "NOTIFICATION_EMAIL": ("tables", "notify", "email"),
    "SMTP_SERVER": ("tables", "notify", "smtp_server"),
    "SMTP_PORT": ("tables", "notify", "smtp_port"),
    "SMTP_USERNAME": ("tables", "notify", "smtp_username"),
    "SMTP_PASSWORD": ("variables", "smtp_password"),
    "BACKUP_APPRISE_URLS": ("tables", "notify", "apprise"),
    "BACKUP_PING_URL": ("tables", "notify", "ping_url"),
    "BACKUP_ALARM_HOURS": ("tables", "notify", "alarm_hours"),
    "BACKUP_METRICS_PORT": ("tables", "metrics", "port"),
    "BACKUP_METRICS_ADDRESS": ("tables", "metrics", "address"),
    "BACKUP_METRICS_TEXTFILE": ("tables", "metrics", "textfile"),
}
CONFIG_VARIABLE = "HOLDFAST_CONFIG"

_LIMIT = 1 << 20
"""Bytes. No configuration is longer; whatever is, is not one."""


class Quiet(dict[str, Any]):
    """A dictionary that keeps its values to itself: pydantic-settings can be told to log what it is given."""

    def __repr__(self) -> str:
        return "{…}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Settings, and how this origin calls one."""

    name: Callable[[Location], str]
    tables: Mapping[str, Any] = field(repr=False)
    variables: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def source(self, settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
        """The same for pydantic-settings."""
        return InitSettingsSource(
            settings_cls, {"tables": Quiet(self.tables), "variables": Quiet(self.variables)}
        )


class Everything(BaseSettings):
    """All settings, whichever way they came."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, case_sensitive=True, hide_input_in_errors=True
    )

    tables: Tables = Tables()
    variables: Variables = Variables()

    def __init__(self, *origins: Origin) -> None:
        super().__init__(origins=origins)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Pydantic's own sources look for variables named like the fields, and only in os.environ.
        return tuple(origin.source(settings_cls) for origin in init_settings()["origins"])


def build(*origins: Origin) -> Everything:
    """Merges origins, the first one winning. Raises ConfigError for the first setting that is wrong."""
    for origin in origins:
        try:
            Everything(origin)
        except ValidationError as error:
            # The cause is left behind: it holds the values, and some are secret.
            raise refusal(error, origin.name) from None
    return Everything(*origins)


def from_variables(values: Mapping[str, str], where: str = "") -> Origin:
    """Ours among `values`; `where` is said after a variable's name.

    Of blank variables only those of ``[backup]`` are refused. The others count as unset, which is what
    ``KEY=${KEY:-}`` in a compose file means.
    """
    tables: dict[str, dict[str, str]] = {}
    others: dict[str, str] = {}
    for variable, (area, *path) in VARIABLES.items():
        value = values.get(variable)
        if value is None or (path[0] != "backup" and not value.strip()):
            continue
        keys = tables.setdefault(str(path[0]), {}) if area == "tables" else others
        keys[str(path[-1])] = value
    names = {location: variable + where for variable, location in VARIABLES.items()}
    return Origin(lambda location: names[location], tables, others)


def from_toml(path: Path) -> Origin:
    """Raises ConfigError when it cannot be read, naming file and line where it is not TOML."""
    text = _read(path)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"line (\d+)", str(error))
        line = found[1] if found else len(text.splitlines())
        raise ConfigError(f"{path}, line {line}: this is not TOML: {error}") from None
    return Origin(lambda location: f"{_dotted(location[1:])} in {path}", values)


def read_dotenv(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables of a ``.env``, ``${NAME}`` replaced as python-dotenv does it; none when it is not there.

    A line that cannot be read is passed over, as it may well be meant for another program, unless it
    mentions one of our variables: then it raises ConfigError.
    """
    values: dict[str, str] = {}
    known = ChainMap(values, dict(environ))
    if not os.path.exists(path) or os.path.isdir(path):  # some keep a virtual environment there
        return values
    for binding in parse_stream(io.StringIO(_read(path))):
        if binding.error:
            ours = set(re.findall(r"\w+", binding.original.string)) & {*VARIABLES, CONFIG_VARIABLE}
            if ours:
                raise ConfigError(
                    f"{path}, line {binding.original.line}: {', '.join(sorted(ours))} cannot be read",
                    hint="Write NAME=value; a quote that is opened must be closed.",
                )
        elif binding.key is not None and binding.value is not None:
            values[binding.key] = "".join(part.resolve(known) for part in parse_variables(binding.value))
    return values


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise ConfigError(f"{path} is longer than {_LIMIT} bytes: this is no configuration")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: this is not UTF-8") from None


def _dotted(keys: Location) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
