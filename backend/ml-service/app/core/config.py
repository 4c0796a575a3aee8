"""The settings in `config/service.yaml`.

The file is a flat mapping of plain scalars, the part of YAML that these settings need. Anything else in it
(quotes, lists, nesting) is refused by line, never guessed at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CONFIG_FILE = Path("config/service.yaml")
_BLANK = re.compile(r"\s*(#.*)?")
_SETTING = re.compile(r"(?P<name>\w+):\s+(?P<value>[\w./+-]+)\s*(#.*)?")


class ServiceConfig(BaseModel):
    """Relative paths are relative to the current directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_directory: Path = Path("models")
    log_file: Path = Path("logs/service.log")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    review_threshold: float = Field(default=0.6, ge=0, le=1)  # less confident predictions want a human's eye


def load_config(path: Path = CONFIG_FILE) -> ServiceConfig:
    """Reads the settings; raises ValueError (pydantic's included) for a line or a name that is not one."""
    settings: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if _BLANK.fullmatch(line):
            continue
        setting = _SETTING.fullmatch(line)
        if setting is None or setting["name"] in settings:
            raise ValueError(f"{path}, line {number}: expected one `name: value`, each name once: {line!r}")
        settings[setting["name"]] = setting["value"]
    return ServiceConfig.model_validate(settings)
