"""One service and its backups, put together: settings, keys, local state, repository, sources and targets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.clock import Clock, system_clock
from holdfast.config import BackupConfig, DatabaseSpec, Settings, load_settings
from holdfast.crypto import KeyRing, SigningKey, fingerprint, read_key_file, verify
from holdfast.engines import SwapKinds, database_source, server_target, sqlite_target
from holdfast.errors import ConfigError, CredentialError, KeyMissing, RestoreError
from holdfast.eventlog import log
from holdfast.events import Warned
from holdfast.model import BackupFormat, Component, Signature, SourceRecord
from holdfast.repository._parity_storage import ParityStorage
from holdfast.repository.archive import ArchiveRepository, Seal
from holdfast.repository.either import EitherRepository
from holdfast.sources.base import Restorable, Source
from holdfast.sources.files import FilesSource
from holdfast.sources.files._staging import FilesTarget
from holdfast.sources.sqlite._snapshot import take_snapshot
from holdfast.state import LocalState
from holdfast.storage.local import LocalStorage
from holdfast.text import shown
from holdfast.transaction import Kinds
from holdfast.version import __version__

if TYPE_CHECKING:
    from holdfast.repository.dedup import DedupRepository

_NO_KEY = (
    "Set ENCRYPTION_KEY to a passphrase, an age identity (AGE-SECRET-KEY-1…) or recipients (age1…); "
    "`holdfast init` or `holdfast key new` makes an identity. BACKUP_ENCRYPT=false does without encryption."
)

ManualKey = Callable[[], "str | bytes | None"]


@dataclass(frozen=True)
class Installation:
    """What jobs work with."""

    settings: Settings
    state: LocalState
    clock: Clock
    manual_key: ManualKey
    """A key set by hand in this process; it wins over what is configured."""

    @classmethod
    def load(
        cls,
        root: Path | None = None,
        environ: Mapping[str, str] | None = None,
        config: BackupConfig | None = None,
        *,
        clock: Clock = system_clock,
        manual_key: ManualKey = lambda: None,
    ) -> Installation:
        """Raises ConfigError for settings that are wrong. Makes nothing."""
        environ = os.environ if environ is None else environ
        settings = load_settings(root, environ, config)
        state = LocalState.locate(environ, root=settings.root, backup_dir=settings.backup_dir)
        return cls(settings, state, clock, manual_key)

    def at(self, backup_dir: Path, format_: BackupFormat) -> Installation:
        """The same service with another backup directory, and the format of new backups there."""
        parity = self.settings.parity and format_ == "dedup"
        settings = replace(self.settings, backup_dir=backup_dir, format=format_, parity=parity)
        return Installation(settings, self.state.at(backup_dir), self.clock, self.manual_key)

    @cached_property
    def repository(self) -> EitherRepository:
        directory = LocalStorage(self.settings.backup_dir)
        storage = ParityStorage(directory, writes=self.settings.parity, told=self._note_mended)
        seal = Seal(encrypt=self.settings.encrypt, keys=self.keys, sign=self.sign, believes=self.believes)
        host, tool = socket.gethostname(), f"holdfast {__version__}"
        archive = ArchiveRepository(
            storage,
            self.state,
            seal,
            level=self.settings.compression_level,
            host=host,
            tool=tool,
            clock=self.clock,
        )

        def dedup() -> DedupRepository:
            from holdfast.repository.dedup import DedupRepository

            return DedupRepository(
                storage,
                self.state,
                seal,
                writer=lambda: self.signing_key().public,
                locate=self._file_of,
                host=host,
                tool=tool,
                clock=self.clock,
                trust_writers=[
                    writer if writer.startswith("SHA256:") else fingerprint(writer)
                    for writer in self.settings.trust_writers
                ],
            )

        return EitherRepository(storage, archive, dedup, writes=self.settings.format)

    @cached_property
    def mended(self) -> list[str]:
        """What a person should know of damage that was mended in reading, a sentence for each object."""
        return []

    def _note_mended(self, message: str) -> None:
        log(Warned(message))
        self.mended.append(message)

    def _file_of(self, path: str) -> Path:
        """Where the file of an entry lies, if it is still there."""
        area, _, rest = path.partition("/")
        return self.settings.root / rest if area == "files" else Path("/") / rest

    def keys(self) -> KeyRing:
        """The keys to encrypt to and to decrypt with. Raises KeyMissing when there are none, or the key file is not
        there; KeyWrong when one is malformed."""
        if manual := self.manual_key():
            return KeyRing.parse(manual)
        if self.settings.encryption_key is not None:
            return KeyRing.parse(self.settings.encryption_key.get_secret_value())
        if self.settings.key_file is not None:
            return read_key_file(self.settings.key_file)
        raise KeyMissing("there is no key to encrypt or decrypt with", hint=_NO_KEY)

    def signing_key(self) -> SigningKey:
        """This host's own, made on first use."""
        path = self.state.signing_key
        if not path.exists():
            self.state.make()
            with suppress(CredentialError):  # Another process may be first; what else is wrong, `load` tells.
                SigningKey.generate().save(path)
        return SigningKey.load(path)

    def sign(self, statement: bytes) -> Signature:
        key = self.signing_key()
        return Signature(key=key.public, value=key.sign(statement))

    def trusted_keys(self) -> frozenset[str]:
        """Public keys whose signatures are believed: this host's own, if it has one yet, and those pinned here."""
        own = {self.signing_key().public} if self.state.signing_key.exists() else set()
        return self.state.trusted_keys() | own

    def believes(self, signature: Signature | None, statement: bytes) -> bool:
        """Whether a signature is a good one of `statement`, by a trusted key."""
        return (
            signature is not None
            and signature.key in self.trusted_keys()
            and verify(signature.key, signature.value, statement)
        )

    def sources(self, components: Sequence[Component]) -> list[Source]:
        """What there is to back up of these components, in the order of a backup."""
        found: list[Source] = []
        if "database" in components:
            found += [database_source(spec, self.settings, self.clock) for spec in self.settings.databases]
        found += [
            FilesSource(
                spec.component,
                spec.name,
                self.settings.root,
                [str(path) for path in spec.paths],
                exclude=spec.exclude,
                never=(*spec.never, self.settings.backup_dir),
                clock=self.clock,
                snapshot=lambda path: take_snapshot(path, timeout=self.settings.database_timeout),
            )
            for spec in self.settings.files
            if spec.component in components and spec.paths
        ]
        return found

    @property
    def swaps(self) -> Kinds:
        """Every kind of swap that a restore journal may name."""
        return SwapKinds(self.settings)

    def target(
        self, record: SourceRecord, *, create_database: bool, only: Sequence[str] | None = None
    ) -> Restorable:
        """Where a source of a backup goes back to.

        A backup is not believed about places: what lies outside the service root must be configured here.
        `create_database`: a database that is not there is made, with the directories above its file. `only`: of a
        source of files just these entry paths are replaced. Raises RestoreError.
        """
        if record.kind == "files":
            paths = record.roots if only is None else only
            return FilesTarget(
                {path: self.place(record, path) for path in paths},
                never=self._never(),
                inner={
                    path: self.place(record, root)
                    for path in paths
                    for root in record.roots
                    if path.startswith(f"{root}/")
                },
            )
        spec = self._database(record)
        if record.kind == "sqlite" and (spec is None or spec.dialect == "sqlite"):
            path = self._database_path(record) if spec is None else spec.sqlite_path(self.settings.root)
            return sqlite_target(path, self.settings, create_parents=create_database)
        if spec is None:
            raise RestoreError(
                f"database {record.name} is {record.kind}, and not configured here",
                hint=f"Set DATABASE_URL, or name it in holdfast.toml: [database.{record.name}] with its url.",
            )
        return server_target(spec, self.settings, record, create_database=create_database)

    def elsewhere(self, record: SourceRecord, directory: Path, others: Sequence[SourceRecord]) -> FilesTarget:
        """Where a source goes when it is restored below `directory`: to the place that it has below the service
        root; ``absolute/…`` and ``database/…`` hold what has none."""
        if record.kind == "files":
            return FilesTarget({root: directory / root.removeprefix("files/") for root in record.roots})
        if record.kind != "sqlite":
            entry = f"database/{record.name}.dump"
            return FilesTarget({entry: directory / entry})
        entry = f"database/{record.name}.db"
        place = record.roots[0] if len(record.roots) == 1 and record.roots[0].startswith("files/") else entry
        if any(place.startswith(f"{root}/") for other in others for root in other.roots):
            place = entry  # A copy of the database comes with the directory that it lies in.
        return FilesTarget({entry: directory / place.removeprefix("files/")})

    def place(self, record: SourceRecord, path: str) -> Path:
        """Where an entry of a source of files goes back to. Raises RestoreError where a link that the backup does
        not have leads there."""
        root = next((root for root in record.roots if path == root or path.startswith(f"{root}/")), path)
        top = self._path(record, root)
        if path == root:
            return top
        rest = path[len(root) + 1 :]
        place = Path(os.path.realpath(top), rest)
        self._check_own(place, rest)
        if os.path.realpath(place.parent) != str(place.parent):
            raise RestoreError(
                f"{shown(str(place))} lies behind a link that the backup does not have",
                hint="Restore the directory that the link stands for, or restore elsewhere with --target DIR.",
            )
        return place

    def _check_own(self, path: Path, rest: str) -> None:
        """`rest`: the end of the path, which the backup names."""
        own = [place for never in self._never() for place in (never, os.path.realpath(never))]
        staged = any(part.startswith(".holdfast-") for part in rest.split("/"))
        if staged or any(path.is_relative_to(place) for place in own):
            raise RestoreError(f"{shown(str(path))} is Holdfast's own, and no restore replaces it")

    def _never(self) -> list[Path]:
        settings = self.settings
        own = (settings.config_file, settings.key_file, settings.backup_dir, self.state.home)
        return [path for path in own if path is not None]

    def _database(self, record: SourceRecord) -> DatabaseSpec | None:
        """The database that is configured here under the name that it has in the backup."""
        try:
            databases = self.settings.databases
        except ConfigError:
            return None
        return next((spec for spec in databases if spec.name == record.name), None)

    def _database_path(self, record: SourceRecord) -> Path:
        if len(record.roots) != 1:
            raise RestoreError(f"the backup does not say where database {record.name} was")
        return self._path(record, record.roots[0])

    def _configured(self) -> list[Path]:
        return [path for spec in self.settings.files for path in spec.paths]

    def _path(self, record: SourceRecord, root: str) -> Path:
        area, _, rest = root.partition("/")
        if area == "files" and rest:
            path = self.settings.root / rest
            self._check_own(path, rest)
            inside = Path(os.path.realpath(path.parent)).is_relative_to(self.settings.root)
            if inside or path in self._configured():
                return path
            raise RestoreError(
                f"{path} lies behind a link that leads out of {self.settings.root}, and is not configured here",
                hint="Name it in holdfast.toml, or restore elsewhere with --target DIR.",
            )
        path = Path("/") / rest
        if area != "absolute" or path not in self._configured():
            raise RestoreError(
                f"{record.component} {record.name} was backed up from {path}, which is not configured here",
                hint="Name it in holdfast.toml, or restore elsewhere with --target DIR.",
            )
        return path
