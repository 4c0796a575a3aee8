"""Local state: what this machine remembers beside the backups, private to one user.

::

    $XDG_STATE_HOME/holdfast/
    ├── signing.key                 this host's Ed25519 key
    ├── repositories/<id>/          one for each backup directory
    │   ├── history.jsonl           what every run did, append-only
    │   ├── trusted.json            signing keys that are believed
    │   └── lists/<backup id>.gz    what recent backups hold, so that incrementals need not read them
    └── services/<id>/              one for each service root
        ├── restore.json            the restore journal
        ├── outbox/                 notifications that wait for a mail server
        └── logs/                   one log for each restore

Losing it loses no backup: lists are rebuilt from the archives by whoever can read them.

An ``<id>`` is the directory's own name and a hash of its real path. It is not read from the backup directory:
that may be unmounted when a crashed restore must be recovered, and others may be able to write there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.durable import explained, make_private, replace_file
from holdfast.errors import ConfigError
from holdfast.model import is_backup_id

_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


def state_home(environ: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/holdfast``, by default ``~/.local/state/holdfast`` (XDG Base Directory Specification)."""
    configured = environ.get("XDG_STATE_HOME", "")
    if configured and os.path.isabs(configured):
        return Path(configured) / "holdfast"
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".local" / "state" / "holdfast"


@dataclass(frozen=True, slots=True)
class LocalState:
    """The state directory, seen from one service root and one backup directory."""

    home: Path
    repository: Path
    service: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str], *, root: Path, backup_dir: Path) -> LocalState:
        """Finds, and does not make, the directories."""
        home = state_home(environ)
        return cls(
            home=home,
            repository=home / "repositories" / _identify(backup_dir),
            service=home / "services" / _identify(root),
        )

    def at(self, backup_dir: Path) -> LocalState:
        """The same, seen from another backup directory."""
        return replace(self, repository=self.home / "repositories" / _identify(backup_dir))

    @property
    def signing_key(self) -> Path:
        return self.home / "signing.key"

    @property
    def restore_logs(self) -> Path:
        return self.service / "logs"

    @property
    def history_file(self) -> Path:
        return self.repository / "history.jsonl"

    def list_file(self, backup_id: str) -> Path:
        """Where the list of what a backup holds is kept."""
        if not is_backup_id(backup_id):
            raise ValueError(f"{backup_id!r} is not a backup id")
        return self.repository / "lists" / f"{backup_id}.gz"

    def lists(self) -> list[str]:
        """Ids of the backups whose lists are kept, in the order of their times."""
        directory = self.repository / "lists"
        found = [path.stem for path in directory.glob("*.gz")] if directory.is_dir() else []
        return sorted((name for name in found if is_backup_id(name)), key=lambda name: name.split("_", 1)[1])

    def make(self) -> None:
        """Makes the directories, 0700. Raises ConfigError when somebody else owns them, or may write there."""
        for directory in (
            self.home,
            self.repository,
            self.repository / "lists",
            self.service,
            self.restore_logs,
        ):
            try:
                make_private(directory, self.home)
            except OSError as error:
                raise ConfigError(
                    f"cannot make {directory}: {error.strerror}",
                    hint="Point XDG_STATE_HOME at a directory of your own that can be written to.",
                ) from error
        for directory in (self.home, self.repository, self.service):
            status = directory.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ConfigError(
                    f"{directory} belongs to, or may be written by, another user",
                    hint="Point XDG_STATE_HOME at a directory of your own.",
                )

    def trusted_keys(self) -> frozenset[str]:
        """Public keys (base64) of hosts whose signatures are believed here, beside this host's own."""
        try:
            keys = json.loads((self.repository / "trusted.json").read_text())
        except FileNotFoundError:
            return frozenset()
        return frozenset(str(key) for key in keys)

    def trust(self, key: str) -> None:
        """Believes a public key from now on."""
        self.make()
        replace_file(
            self.repository / "trusted.json",
            json.dumps(sorted(self.trusted_keys() | {key}), indent=2).encode(),
        )

    def record(self, event: Mapping[str, Any]) -> None:
        """Appends a line to the history, durably."""
        self.make()
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with explained(f"cannot write {self.history_file}"):
            fd = os.open(self.history_file, flags, 0o600)
            try:
                end = os.fstat(fd).st_size
                if end and os.pread(fd, 1, end - 1) != b"\n":
                    line = b"\n" + line  # A line that a crash cut short must not take this one with it.
                os.write(fd, line)
                os.fsync(fd)
            finally:
                os.close(fd)

    def history(self) -> Iterator[dict[str, Any]]:
        """What every run did, oldest first. A line that a crash cut short is passed over."""
        try:
            file = self.history_file.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _identify(directory: Path) -> str:
    real = os.path.realpath(directory)
    name = _UNSAFE.sub("-", os.path.basename(real)).strip("-.")[:32] or "root"
    return f"{name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}"
