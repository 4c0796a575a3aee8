"""The tables and keys of ``holdfast.toml``, and what each value may be."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError


def must(words: str) -> PydanticCustomError:
    """The refusal of a value: `words` go on where "it must" leaves off."""
    return PydanticCustomError("must", "it must {words}", {"words": words})


def _must(words: str) -> WrapValidator:
    """Says everything that is allowed, whichever of the rules before it was broken."""

    def check(value: Any, rules: ValidatorFunctionWrapHandler) -> Any:
        try:
            return rules(value)
        except ValidationError:
            raise must(words) from None

    return WrapValidator(check)


def _no_switch(value: object) -> object:
    # Python counts True as 1, and `compression_level = true` would pass for a level. "True" is no number.
    return str(value) if isinstance(value, bool) else value


def _not_blank(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError
    return text


def _arguments(command: object) -> object:
    return shlex.split(command) if isinstance(command, str) else command


def _runnable(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if not arguments or not arguments[0].strip() or "\0" in "".join(arguments):
        raise ValueError
    return arguments


def _level_name(level: str) -> str:
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(level.upper(), level.upper())


_Number = BeforeValidator(_no_switch)
_Text = Annotated[str, AfterValidator(_not_blank)]

Switch = Annotated[bool, _must("be true or false")]
PathText = Annotated[_Text, _must("be a path")]
Pattern = Annotated[_Text, _must("be a pattern such as '*.tmp' or 'cache/'")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), _must("be the name of a variable")]
SourceName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9_-]{1,63}$"),
    _must("be named in at most 63 lower-case letters, digits, '-' and '_'"),
]
Tag = Annotated[
    str, Field(pattern=r"^\S+$", max_length=100), _must("be a word of 1 to 100 characters, without spaces")
]
Days = Annotated[
    int, Field(ge=1, le=1_000_000), _Number, _must("be a whole number of days from 1 to 1000000")
]
Level = Annotated[int, Field(ge=0, le=9), _Number, _must("be a whole number from 0 to 9")]
Gigabytes = Annotated[
    float,
    Field(gt=0, le=1e9, allow_inf_nan=False),
    _Number,
    _must("be a number of GB above 0, at most 1000000000"),
]
Seconds = Annotated[
    float,
    Field(ge=0, le=86_400, allow_inf_nan=False),
    _Number,
    _must("be a number of seconds from 0 to 86400"),
]
Schedule = Annotated[
    str,
    Field(pattern=r"^(hourly|daily|weekly|monthly|[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4})$"),
    _must("be hourly, daily, weekly, monthly, or the five fields of a cron line"),
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_level_name),
    _must("be DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_arguments),
    AfterValidator(_runnable),
    _must("be a command with its arguments: a string quoted as in a shell, or a list of strings"),
]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class BackupTable(Table):
    """``[backup]``. The contract's `BackupConfig` is checked by it as well."""

    directory: PathText = "./backups"
    retention_days: Days = 30
    compression_level: Level = 9
    max_size_gb: Gigabytes = 10.0
    encrypt: Switch = True
    include_models: Switch = True
    include_config: Switch = True
    include_logs: Switch = False
    schedule: Schedule = "daily"


class DatabaseTable(Table):
    """``[database.<name>]``."""

    url: SecretStr | None = None
    env: VariableName | None = None
    """The variable that holds the URL."""

    @model_validator(mode="after")
    def _says_where(self) -> DatabaseTable:
        if (self.url is None) == (self.env is None):
            raise must("have a url, or an env that names the variable with the URL, and not both")
        return self


class FilesTable(Table):
    """``[models]``, ``[config]`` and ``[logs]``."""

    paths: tuple[PathText, ...] | None = None
    """None for what is usual."""
    exclude: tuple[Pattern, ...] = ()


class HooksTable(Table):
    """``[hooks]``: commands as argument lists. No shell ever sees them."""

    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()


class Tables(Table):
    """All of ``holdfast.toml``."""

    tags: tuple[Tag, ...] = ()
    key_file: PathText | None = None
    database_timeout: Seconds = 30.0
    backup: BackupTable = BackupTable()
    database: dict[SourceName, DatabaseTable] = {}
    models: FilesTable = FilesTable()
    config: FilesTable = FilesTable()
    logs: FilesTable = FilesTable()
    hooks: HooksTable = HooksTable()


class Variables(Table):
    """What only a variable can say: never ``holdfast.toml``, because it is shared, printed and committed."""

    encryption_key: SecretStr | None = None
    database_url: SecretStr | None = None
    log_level: LogLevel | None = None
