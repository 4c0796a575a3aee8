"""A service root that backups are restored to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conformance.places import Places
from holdfast.events import Event, Warned
from holdfast.sources.files._staging import FilesTarget
from holdfast.transaction import Swap
from sources.disk import Backup, directory, file, hardlink, symlink

MODELS = {"files/models": "models"}


class Target:
    """A service root, and a restore of a backup into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []
        self.places = Places()

    def stage(self, backup: Backup, names: dict[str, str] | None = None, **settings: Any) -> list[Swap]:
        target = FilesTarget({root: self.root / name for root, name in (names or MODELS).items()}, **settings)
        return target.stage(backup.entries(), backup.read, self.places, self.events.append)

    def restore(self, backup: Backup, names: dict[str, str] | None = None, **settings: Any) -> None:
        for swap in self.stage(backup, names, **settings):
            swap.apply()

    def write(self, backup: Backup, names: dict[str, str] | None = None) -> None:
        target = FilesTarget({root: self.root / name for root, name in (names or MODELS).items()})
        target.write(backup.entries(), backup.read, self.events.append, within=self.root)

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]


def everything() -> Backup:
    """One of each kind, with attributes that no default gives."""
    return Backup(
        directory("files/models", mode=0o2751),
        directory("files/models/closed", mode=0),
        (file("files/models/closed/a", mode=0o400), b"a" * 30_000),
        directory("files/models/empty", mode=0o1777, mtime_ns=1),
        (file("files/models/holes", sparse=True), bytes(100_000) + b"x" + bytes(50_000)),
        symlink("files/models/link", "/nowhere"),
        (file("files/models/one", mode=0o4755, mtime_ns=-1_000_000_000), b"one"),
        hardlink("files/models/other", "files/models/closed/a"),
        (file(os.fsdecode(b"files/models/\xff\xfe\n")), b""),
    )
