"""What the tests of the archive repository share: one in a directory, with fixed keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from conformance.trees import Clock
from holdfast.crypto import KeyRing, SigningKey, X25519Identity, verify
from holdfast.model import BackupMetadata, Signature
from holdfast.repository.archive import ArchiveRepository, Seal
from holdfast.state import LocalState
from holdfast.storage.local import LocalStorage

IDENTITY = X25519Identity(bytes(range(1, 33)))
SIGNING_KEY = SigningKey.generate()


def sign(statement: bytes) -> Signature:
    return Signature(SIGNING_KEY.public, SIGNING_KEY.sign(statement))


def believes(signature: Signature | None, statement: bytes) -> bool:
    return signature is not None and verify(SIGNING_KEY.public, signature.value, statement)


@dataclass
class ArchiveGround:
    """Implements `conformance.ground.Ground`."""

    is_chained: ClassVar[bool] = True

    top: Path
    encrypt: bool = False
    keys: KeyRing = field(default_factory=lambda: KeyRing((IDENTITY.recipient,), (IDENTITY,)))
    clock: Clock = field(default_factory=Clock)

    @property
    def directory(self) -> Path:
        return self.top / "backups"

    @property
    def state(self) -> LocalState:
        environ = {"XDG_STATE_HOME": str(self.top / "state")}
        return LocalState.locate(environ, root=self.top / "service", backup_dir=self.directory)

    def repository(self) -> ArchiveRepository:
        return ArchiveRepository(
            LocalStorage(self.directory),
            self.state,
            Seal(encrypt=self.encrypt, keys=lambda: self.keys, sign=sign, believes=believes),
            level=1,
            host="test-host",
            tool="holdfast 1",
            clock=self.clock,
        )

    def archive_of(self, metadata: BackupMetadata) -> Path:
        return self.directory / self.repository().archive_name(metadata)

    def files_of(self, metadata: BackupMetadata) -> list[Path]:
        archive = self.archive_of(metadata)
        return [archive, archive.parent / f"{metadata.backup_id}.metadata.json"]

    def strays(self) -> list[str]:
        accounted = {self.directory / "temp" / "backup.lock", self.directory / "temp" / "expire.lock"}
        for metadata in self.repository().backups():
            archive, record = self.files_of(metadata)
            accounted |= {archive, record} if metadata.is_good else {record}
        found = {
            Path(directory) / name
            for top in (self.directory, self.state.repository / "lists")
            for directory, _, names in os.walk(top)
            for name in names
        }
        lists = {self.state.list_file(backup_id) for backup_id in self.state.lists()}
        return sorted(str(path.relative_to(self.top)) for path in found - accounted - lists)

    def forget(self) -> None:
        for path in (self.state.repository / "lists").iterdir():
            path.unlink()
