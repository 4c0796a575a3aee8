"""A small service with its backups, as an administrator has it: for tests that go through the jobs or the program."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conformance.trees import Clock
from holdfast.events import ignore
from holdfast.installation import Installation
from holdfast.jobs.backup import backup
from holdfast.jobs.restore import Restored, restore
from holdfast.jobs.verify import verify
from holdfast.model import BackupMetadata

Seen = dict[str, tuple[Any, ...]]


@dataclass
class Service:
    """A service root with a database, models, configuration and logs, and `backups/`."""

    root: Path
    environ: dict[str, str]
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def make(cls, top: Path, **environ: str) -> Service:
        root = top / "service"
        for directory in ("models/d", "logs"):
            (root / directory).mkdir(parents=True)
        (root / "models/a.bin").write_bytes(b"live")
        (root / "models/d/x").write_bytes(b"live too")
        (root / "models/link").symlink_to("a.bin")
        (root / ".env").write_text("SETTING=1\n")
        (root / "logs/service.log").write_text("started\n")
        with closing(sqlite3.connect(root / "service.db")) as connection:
            connection.execute("CREATE TABLE sample (id INTEGER PRIMARY KEY, value TEXT)")
            connection.executemany("INSERT INTO sample (value) VALUES (?)", [(str(n),) for n in range(500)])
            connection.commit()
        usual = {"XDG_STATE_HOME": str(top / "state"), "HOME": str(top), "BACKUP_ENCRYPT": "false"}
        return cls(root, usual | {"BACKUP_COMPRESSION_LEVEL": "1"} | environ)

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    def installation(self) -> Installation:
        return Installation.load(self.root, self.environ, clock=self.clock)

    def back_up(self, **how: Any) -> BackupMetadata:
        metadata = backup(self.installation(), ignore, **how).metadata
        self.clock.forward()
        return metadata

    def restore(self, reference: str | Path, **how: Any) -> Restored:
        return restore(self.installation(), str(reference), ignore, **{"confirm": agree, **how})

    def verify(self, reference: str | Path, *, deep: bool = True) -> BackupMetadata:
        return verify(self.installation(), str(reference), ignore, deep=deep)


def agree(question: str) -> bool:
    """For `confirm` and `vouch`."""
    return True


def seen(top: Path, *, but: Sequence[Path] = ()) -> Seen:
    """Everything about everything below a directory."""
    found: Seen = {}
    for directory, names, files in os.walk(top):
        for name in sorted((*names, *files)):
            path = Path(directory, name)
            if path in but:
                if name in names:
                    names.remove(name)
                continue
            status = path.lstat()
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            # Something private may come and go in a directory, and its time tells of that.
            modified = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            attributes = (status.st_mode, status.st_uid, status.st_gid, status.st_ino)
            found[str(path.relative_to(top))] = (*attributes, modified, content)
    return found


@contextmanager
def untouched(top: Path, *, but: Sequence[Path] = ()) -> Iterator[None]:
    """Whatever happens inside changes nothing below `top`, and leaves nothing there."""
    before = seen(top, but=but)
    yield
    after = seen(top, but=but)
    assert sorted(after) == sorted(before)
    changed = [path for path in before if after[path] != before[path]]
    assert not changed


@contextmanager
def refused(
    service: Service, *errors: type[BaseException], match: str | None = None
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """What is inside is refused by one of `errors`, in a sentence. Nothing live or stored has changed, and no
    private place is left."""
    top = service.root.parent
    own = (top / "state", service.backups / "temp")
    with untouched(top, but=own), no_hang(), pytest.raises(errors, match=match) as raised:
        yield raised
    assert str(raised.value)


@contextmanager
def no_hang(seconds: int = 60) -> Iterator[None]:
    """What goes on without end fails its own test, and not all the others."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError("it goes on without end")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
