"""What the tests of several writers share: hosts with one repository, of which some mean no good."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conformance.ground import ignore_progress
from conformance.trees import Clock, Trees, assert_holds, plan_of, store_source
from holdfast.crypto import KeyRing, SigningKey, fingerprint, verify
from holdfast.model import BackupMetadata, Signature
from holdfast.repository._seal import Seal
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys, write_run_keys
from holdfast.repository.dedup._pack_writer import PackWriter
from holdfast.repository.dedup._table import PackTable
from holdfast.repository.dedup._writer import audience, parse_writer_key
from holdfast.repository.dedup.repository import DedupRepository
from holdfast.state import LocalState
from holdfast.storage.local import LocalStorage
from repository.dedup.grounds import IDENTITY, DedupGround
from repository.dedup.sealed import pool

WRITE_ONLY = KeyRing((IDENTITY.recipient,), ())
READS = KeyRing((IDENTITY.recipient,), (IDENTITY,))


@dataclass
class Host(DedupGround):
    """One of several with the same backup directory, write-only unless said otherwise."""

    encrypt: bool = True
    keys: KeyRing = WRITE_ONLY
    name: str = "a"
    signing: SigningKey = field(default_factory=SigningKey.generate)
    trusts: Sequence[Host] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing.public)

    @property
    def state(self) -> LocalState:
        environ = {"XDG_STATE_HOME": str(self.top / f"state-{self.name}")}
        return LocalState.locate(environ, root=self.top / "service", backup_dir=self.directory)

    @property
    def memory(self) -> Path:
        return self.state.repository / "dedup"

    def sign(self, statement: bytes) -> Signature:
        return Signature(self.signing.public, self.signing.sign(statement))

    def believes(self, signature: Signature | None, statement: bytes) -> bool:
        return signature is not None and verify(self.signing.public, signature.value, statement)

    def repository(self) -> DedupRepository:  # type: ignore[override]
        return DedupRepository(
            LocalStorage(self.directory),
            self.state,
            Seal(encrypt=self.encrypt, keys=lambda: self.keys, sign=self.sign, believes=self.believes),
            writer=lambda: self.signing.public,
            locate=self.locate,
            host=self.name,
            tool="holdfast 1",
            clock=self.clock,
            trust_writers=[host.fingerprint for host in self.trusts],
        )

    def make(self, trees: Trees) -> BackupMetadata:
        """A backup without warnings."""
        metadata, warnings = self.try_make(trees)
        assert warnings == []
        return metadata

    def try_make(self, trees: Trees) -> tuple[BackupMetadata, list[str]]:
        with self.repository().begin(plan_of(trees)) as run:
            for key in sorted(trees):
                store_source(run, key, trees[key])
            metadata = run.commit(warnings=0, duration_seconds=0)
        self.clock.forward()
        return metadata, run.warnings

    def join(self, other: Host) -> None:
        """Takes the other's id key."""
        assert self.repository().adopt_writer_key(other.repository().writer_key())

    def assert_restores(self, metadata: BackupMetadata, trees: Trees) -> None:
        """Whoever has the identity gets everything back."""
        reader = Host(self.top, keys=READS, name="reader", clock=self.clock).repository()
        reader.verify(metadata, deep=True, progress=ignore_progress)
        assert_holds(reader, metadata, trees)

    def packs_of(self, metadata: BackupMetadata) -> set[str]:
        reader = Host(self.top, keys=READS, name="reader", clock=self.clock).repository()
        with reader.open(metadata) as stored:
            return {pack.name for pack in stored.manifest.packs if pack.hash}


def hosts(top: Path, names: str) -> list[Host]:
    clock = Clock()
    return [Host(top, name=name, clock=clock) for name in names]


@dataclass
class Rogue:
    """A host that has the id key, writes what is well formed, and lies."""

    host: Host
    repository: str
    id_key: bytes
    keys: RunKeys
    key_file: str

    @classmethod
    def like(cls, host: Host, victim: Host, run: RunKeys | None = None) -> Rogue:
        """With the writer key of `victim`, and a run of its own."""
        repository, id_key = parse_writer_key(victim.repository().writer_key())
        keys = run or RunKeys.generate(
            repository=repository, id_key=id_key, writer=host.signing.public, clock=host.clock
        )
        key_file = write_run_keys(LocalStorage(host.directory), keys, host.keys.recipients)  # type: ignore[arg-type]
        return cls(host, repository, id_key, keys, key_file)

    def pack(self, chunks: Iterable[tuple[bytes, bytes]], number: int = 0) -> PackTable:
        """A pack that says to hold chunks of these ids, and holds these contents."""
        storage = LocalStorage(self.host.directory)
        with pool() as executor, PackWriter(storage, self.keys, number, executor) as writer:
            writer.add_block(list(chunks), 1)
            return writer.finish()

    def index(
        self, *tables: PackTable, signed_by: Host | None = None, audience_of: KeyRing = WRITE_ONLY
    ) -> str:
        """An index object of these, and where it lies."""
        signer = signed_by or self.host
        writer = IndexWriter(
            LocalStorage(self.host.directory),
            self.keys,
            sign=signer.sign,
            key_file=self.key_file,
            audience=audience(audience_of.recipients),  # type: ignore[arg-type]
        )
        for table in tables:
            writer.add(table)
        writer.flush()
        return writer.names[0]


def id_key_of(host: Host) -> str:
    return str(json.loads((host.memory / "writer.json").read_text())["id_key"])
