"""Turns what the models refuse into one error that says which setting, in the words of where it was set."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ValidationError

from holdfast.config._tables import (
    BackupTable,
    DatabaseTable,
    DrillTable,
    FilesTable,
    HooksTable,
    LogTable,
    MetricsTable,
    NotifyTable,
    RetentionTable,
    Tables,
    Variables,
)
from holdfast.errors import ConfigError

Location = tuple[str | int, ...]
"""Where a setting is: ``("tables", "backup", "directory")``."""

_TABLES: dict[str | int, type[BaseModel]] = {
    "backup": BackupTable,
    "database": DatabaseTable,
    "models": FilesTable,
    "config": FilesTable,
    "logs": FilesTable,
    "hooks": HooksTable,
    "notify": NotifyTable,
    "metrics": MetricsTable,
    "retention": RetentionTable,
    "log": LogTable,
    "drill": DrillTable,
}
_KINDS = {
    "model_type": "be a table",
    "dict_type": "be a table",
    "tuple_type": "be a list",
    "string_type": "be a string",
}

# URLs hold passwords, and a command's arguments may hold a token.
_SECRET = {"database", "hooks", "drill", "encryption_key", "database_url", "smtp_password"}
_SECRET_CHANNELS = {"apprise", "ping_url"}


def refusal(error: ValidationError, name: Callable[[Location], str]) -> ConfigError:
    """The first thing that is wrong. `name` says how its origin calls a setting."""
    first = error.errors(include_url=False)[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    keys = location[1:]
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{name(location)} is not a setting", hint=_nearest(keys))
    kind = _KINDS.get(first["type"])
    reason = f"it must {kind}" if kind else first["msg"]
    hint = ""
    if keys[0] == "database" and kind == "be a table":
        hint = "Each database has a table of its own: [database.main] with url or env."
    return ConfigError(f"{name(location)} is {_shown(keys, first['input'])}: {reason}", hint=hint)


def _shown(keys: Location, value: object) -> str:
    secret = keys[0] in _SECRET or (keys[0] == "notify" and (len(keys) == 1 or keys[1] in _SECRET_CHANNELS))
    if secret:
        return "refused"
    return reprlib.repr(value) if value != "" else "empty"


def _nearest(keys: Location) -> str:
    """The nearest key of the same table, else of any: `retention_days` may have lost its ``[backup]``."""
    unknown = str(keys[-1])
    here = list((Tables if len(keys) == 1 else _TABLES[keys[0]]).model_fields)
    elsewhere = dict(_everywhere())
    if unknown in elsewhere:
        return f"Did you mean {elsewhere[unknown]}?"
    if near := difflib.get_close_matches(unknown, here, n=1):
        return f"Did you mean {near[0]}?"
    if near := difflib.get_close_matches(unknown, elsewhere, n=1):
        return f"Did you mean {elsewhere[near[0]]}?"
    return f"Known here: {', '.join(here)}."


def _everywhere() -> Iterator[tuple[str, str]]:
    yield from ((key, f"the variable {key.upper()}") for key in Variables.model_fields)
    yield from ((key, f"{key}, before the first table") for key in Tables.model_fields)
    for table, model in _TABLES.items():
        title = "[database.main]" if table == "database" else f"[{table}]"
        yield from ((key, f"{key} in {title}") for key in model.model_fields)
    yield from ((table, f"the table [{table}]") for table in map(str, _TABLES))
