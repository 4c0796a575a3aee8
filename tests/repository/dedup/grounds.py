"""What the tests of the deduplicating repository share: one in a directory, with fixed keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from conformance.trees import Clock
from holdfast.crypto import KeyRing, SigningKey, X25519Identity, verify
from holdfast.model import BackupMetadata, Signature
from holdfast.repository._seal import Seal
from holdfast.repository.dedup.repository import DedupRepository
from holdfast.state import LocalState
from holdfast.storage.local import LocalStorage

IDENTITY = X25519Identity(bytes(range(1, 33)))
SIGNING_KEY = SigningKey.generate()


def sign(statement: bytes) -> Signature:
    return Signature(SIGNING_KEY.public, SIGNING_KEY.sign(statement))


def believes(signature: Signature | None, statement: bytes) -> bool:
    return signature is not None and verify(SIGNING_KEY.public, signature.value, statement)


@dataclass
class DedupGround:
    """Implements `conformance.ground.Ground`."""

    is_chained: ClassVar[bool] = False

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

    def repository(self) -> DedupRepository:
        return DedupRepository(
            LocalStorage(self.directory),
            self.state,
            Seal(encrypt=self.encrypt, keys=lambda: self.keys, sign=sign, believes=believes),
            writer=lambda: SIGNING_KEY.public,
            locate=self.locate,
            host="test-host",
            tool="holdfast 1",
            clock=self.clock,
        )

    def locate(self, path: str) -> Path | None:
        """Where a file of the service lies."""
        return self.top / "service" / path.removeprefix("files/")

    def files_of(self, metadata: BackupMetadata) -> list[Path]:
        """The packs that it needs, its manifest, its metadata."""
        kind = {"incremental": "incremental"}.get(metadata.type, metadata.type)
        manifest = self.directory / kind / f"{metadata.backup_id}.manifest"
        with self.repository().open(metadata) as stored:
            packs = [pack.name for pack in stored.manifest.packs if pack.hash]
        found = [self.directory / "packs" / pack[:2] / pack for pack in packs]
        return [*found, manifest, manifest.with_name(f"{metadata.backup_id}.metadata.json")]

    def strays(self) -> list[str]:
        """What no backup refers to. Finished packs of a run that failed are not: the next run finds them."""
        accounted = {self.directory / "repository.json"}
        for metadata in self.repository().backups():
            name = f"{metadata.backup_id}.metadata.json"
            accounted |= (
                set(self.files_of(metadata)) if metadata.is_good else {self.directory / metadata.type / name}
            )
        found = {
            Path(directory) / name
            for top in (self.directory, self.state.repository / "lists")
            for directory, _, names in os.walk(top)
            for name in names
            if not name.endswith(".lock")
        }
        lists = {self.state.list_file(backup_id) for backup_id in self.state.lists()}
        kept = {path for path in found if path.parent.name in ("keys", "index") or "packs" in path.parts}
        return sorted(str(path.relative_to(self.top)) for path in found - accounted - lists - kept)

    def forget(self) -> None:
        for path in (self.state.repository / "lists").iterdir():
            path.unlink()
