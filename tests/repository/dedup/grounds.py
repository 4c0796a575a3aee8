"""What the tests of the deduplicating repository share: one in a directory, with fixed keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from holdfast.model import BackupMetadata
from holdfast.repository._seal import Seal
from holdfast.repository.dedup.repository import DedupRepository
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from repository.archive.archives import IDENTITY, SIGNING_KEY, ArchiveGround, believes, sign

__all__ = ["IDENTITY", "SIGNING_KEY", "DedupGround", "believes", "sign"]


@dataclass
class DedupGround(ArchiveGround):
    """Implements `conformance.ground.Ground`, with the keys and the directories of `ArchiveGround`."""

    is_chained: ClassVar[bool] = False

    def repository(self) -> DedupRepository:  # type: ignore[override]
        return DedupRepository(
            self.storage(),
            self.state,
            Seal(encrypt=self.encrypt, keys=lambda: self.keys, sign=sign, believes=believes),
            writer=lambda: SIGNING_KEY.public,
            locate=self.locate,
            host="test-host",
            tool="holdfast 1",
            clock=self.clock,
        )

    def storage(self) -> Storage:
        return LocalStorage(self.directory)

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
