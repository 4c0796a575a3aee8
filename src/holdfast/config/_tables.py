"""The tables and keys of ``holdfast.toml``, and what each value may be."""

from __future__ import annotations

import base64
import re
import shlex
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

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


def is_email_address(text: str) -> bool:
    """Whether mail can go to it: one address, without a person's name, and nothing that would end a header."""
    one = re.fullmatch(r"[^\s@,;:<>()\"\\]+@[^\s@,;:<>()\"\\]+", text)
    return one is not None and len(text) <= 254 and text.isprintable()


def _email(text: str) -> str:
    if not is_email_address(text):
        raise ValueError
    return text


def _words(text: object) -> object:
    return text.split() if isinstance(text, str) else text


def _some_words(text: object) -> object:
    words = _words(text)
    if isinstance(text, str) and not words:
        raise ValueError
    return words


def _channel(url: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", url.get_secret_value()):
        raise ValueError
    return url


def _web(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    parts = urlsplit(text)
    whole = text.isprintable() and " " not in text and parts.hostname and (parts.port or 80)
    if parts.scheme not in ("http", "https") or not whole:
        raise ValueError
    return url


def _writer(text: str) -> str:
    fingerprint = re.fullmatch(r"SHA256:[0-9A-F]{4}(-[0-9A-F]{4}){7}", text)
    if fingerprint is None and len(base64.b64decode(text.encode("ascii"), validate=True)) != 32:
        raise ValueError
    return text


def _lower(text: object) -> object:
    return text.lower() if isinstance(text, str) else text


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
Hours = Annotated[
    float,
    Field(gt=0, le=100_000, allow_inf_nan=False),
    _Number,
    _must("be a number of hours above 0, at most 100000"),
]
Count = Annotated[
    int, Field(ge=0, le=100_000), _Number, _must("be a whole number of backups from 0 to 100000")
]
Port = Annotated[int, Field(ge=1, le=65_535), _Number, _must("be a port from 1 to 65535")]
PortOrOff = Annotated[int, Field(ge=0, le=65_535), _Number, _must("be a port from 1 to 65535, or 0 for none")]
HostName = Annotated[
    str,
    Field(pattern=r"^[^\s/@\x00-\x1f\x7f]{1,253}$"),
    _must("be the name or the address of a host, without a port"),
]
Email = Annotated[str, AfterValidator(_email), _must("be one e-mail address, such as admin@example.com")]
ChannelUrls = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_channel)], ...],
    Field(max_length=50),
    BeforeValidator(_words),
    _must("be Apprise URLs such as slack://…, at most 50: a list, or one string with blanks between them"),
]
WebUrl = Annotated[SecretStr, AfterValidator(_web), _must("be a URL that begins with http:// or https://")]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower), _must("be text or json")]
Schedule = Annotated[
    str,
    Field(pattern=r"^(hourly|daily|weekly|monthly|[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4})$"),
    _must("be hourly, daily, weekly, monthly, or the five fields of a cron line"),
]
Format = Annotated[Literal["archive", "dedup"], _must("be archive or dedup")]
Writers = Annotated[
    tuple[Annotated[str, AfterValidator(_writer)], ...],
    Field(max_length=1000),
    BeforeValidator(_some_words),
    _must(
        "be fingerprints as `holdfast check` shows them (SHA256:…), or public signing keys in base64: a list"
    ),
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
    format: Format = "archive"
    trust_writers: Writers = ()
    parity: Switch = False
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


class NotifyTable(Table):
    """``[notify]``: who is told of what a schedule did. The mail server's password is only ever a variable."""

    email: Email | None = None
    smtp_server: HostName = "smtp.gmail.com"
    smtp_port: Port = 587
    smtp_username: Annotated[_Text, _must("be a name")] | None = None
    apprise: ChannelUrls = ()
    ping_url: WebUrl | None = None
    alarm_hours: Hours | None = None


class MetricsTable(Table):
    """``[metrics]``: for Prometheus."""

    port: PortOrOff = 0
    address: HostName = "127.0.0.1"
    textfile: PathText | None = None


class RetentionTable(Table):
    """``[retention]``: how many backups stay that are the last of their hour, day, week, month or year."""

    last: Count = 0
    hourly: Count = 0
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0
    yearly: Count = 0


class LogTable(Table):
    """``[log]``: what the scheduler writes."""

    format: LogFormat = "text"


class DrillTable(Table):
    """``[drill]``: the rehearsal of a restore."""

    command: Command | None = None
    timeout: Seconds = 3600.0
    """Of the command."""


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
    notify: NotifyTable = NotifyTable()
    metrics: MetricsTable = MetricsTable()
    retention: RetentionTable = RetentionTable()
    log: LogTable = LogTable()
    drill: DrillTable = DrillTable()


class Variables(Table):
    """What only a variable can say: never ``holdfast.toml``, because it is shared, printed and committed."""

    encryption_key: SecretStr | None = None
    database_url: SecretStr | None = None
    smtp_password: SecretStr | None = None
    log_level: LogLevel | None = None
