"""A service with a scheduler whose clock is moved by hand."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from holdfast.clock import timestamp
from holdfast.events import Event, Noted, Warned
from holdfast.model import BackupMetadata
from holdfast.scheduler import BackupScheduler
from holdfast.schedules import Schedule, ScheduleFile
from installed import Service

E = TypeVar("E", bound=Event)


@dataclass
class Ground:
    """A service, a scheduler, and all that it tells."""

    service: Service
    events: list[Event] = field(default_factory=list)

    def scheduler(self, **settings: Any) -> BackupScheduler:
        return BackupScheduler(
            root=self.service.root, emit=self.events.append, clock=self.service.clock, **settings
        )

    def add(self, **config: Any) -> str:
        return self.scheduler().schedule_backup({"schedule_type": "daily", **config})

    @property
    def file(self) -> ScheduleFile:
        return ScheduleFile(self.service.backups)

    def schedule(self, schedule_id: str) -> Schedule:
        return self.file.read()[schedule_id]

    def at(self, text: str) -> datetime:
        """Sets the clock."""
        self.service.clock.now = datetime.fromisoformat(f"{text}+00:00")
        return self.service.clock.now

    @property
    def now(self) -> str:
        return timestamp(self.service.clock())

    def backups(self) -> list[BackupMetadata]:
        """The good ones, newest first."""
        return [known for known in self.service.installation().repository.backups() if known.is_good]

    def told(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if type(event) is kind]

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.told(Warned)]

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.told(Noted)]

    def history(self, verb: str) -> list[dict[str, Any]]:
        return [record for record in self.service.installation().state.history() if record["verb"] == verb]

    def break_database(self) -> None:
        (self.service.root / "service.db").write_bytes(b"this is no database" * 1000)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """The clock shows 2024-01-01 02:00:00."""
    service = Service.make(tmp_path)
    for name in list(os.environ):
        if name.startswith(("BACKUP_", "HOLDFAST_", "SMTP_", "LOG_")) or name in (
            "DATABASE_URL",
            "ENCRYPTION_KEY",
            "NOTIFICATION_EMAIL",
        ):
            monkeypatch.delenv(name)
    for name, value in service.environ.items():
        monkeypatch.setenv(name, value)
    return Ground(service)
