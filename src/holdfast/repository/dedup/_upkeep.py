"""The deduplicating repository as one keeps it in order: what was lost, forgotten, or is of no use any more."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from holdfast.crypto import KeyRing, X25519Identity, X25519Recipient, fingerprint, is_age_file
from holdfast.durable import make_private
from holdfast.errors import (
    CorruptBackup,
    CredentialError,
    KeyMissing,
    KeyWrong,
    LockHeld,
    RepositoryError,
    StorageError,
)
from holdfast.model import METADATA_VERSION, BackupMetadata, ManifestLocation, is_backup_id
from holdfast.repository import _lists as lists
from holdfast.repository import _names as names
from holdfast.repository._catalog import DAMAGED, RUNNING
from holdfast.repository._parity_storage import checked, mend_first
from holdfast.repository.dedup._collection import Collected, Collecting, WriterHere
from holdfast.repository.dedup._ids import KEY_LENGTH
from holdfast.repository.dedup._key_file import IDENTITY, key_file_digest, rewrap_run_keys
from holdfast.repository.dedup._known import Known
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._memories import Memories, learn
from holdfast.repository.dedup._mender import Mender, Mending
from holdfast.repository.dedup._moved import Moved
from holdfast.repository.dedup._proof import Proof
from holdfast.repository.dedup._reading import Reading
from holdfast.repository.dedup._rewrap import is_opened_by, recipients_of, rewrap_identity, rewrap_object
from holdfast.repository.dedup._survey import Survey
from holdfast.repository.dedup._writer import (
    MARK,
    WriterState,
    audience,
    open_repository,
    opened,
    parse_writer_key,
    passphrases,
    recipients_for,
    spell_writer_key,
)

_PINNED = "writer.json"


@contextmanager
def _telling_what_stops(metadata: BackupMetadata) -> Iterator[None]:
    """For `gc`: one backup of which nothing is known could need anything."""
    try:
        yield
    except (KeyWrong, CorruptBackup) as error:
        raise type(error)(
            f"nothing is freed, for it cannot be told what {metadata.backup_id} needs: {error}",
            hint="Set ENCRYPTION_KEY to a key that opens it, or put back what it lacks. If nobody wants it, delete "
            f"{names.manifest_name(metadata.backup_id)} and the metadata.json beside it.",
        ) from error


class Upkeep(Reading):
    """What is done to it between one backup and the next."""

    def rewrap(self, metadata: BackupMetadata, old: KeyRing, new: KeyRing) -> bool:
        """Gives a backup to other recipients, with the keys of the runs whose packs it needs; no pack is written.
        False when `new` opens it already. Raises KeyWrong when `old` does not open it."""
        if passphrases(old) and passphrases(new):
            return rewrap_identity(self._storage, old, new)
        recipients = recipients_of(self._storage, new)
        old, new = opened(self._storage, old), opened(self._storage, new)
        name = names.manifest_name(metadata.backup_id)
        if new.can_decrypt and is_opened_by(self._storage, name, new.identities):
            # A crash may have come between the manifest and its metadata.
            checksum, changed = self._checksum(name), False
        else:
            with (
                self._open_object(name) as file,
                closing(checked(file, lambda: ManifestReader(file, metadata, old, name=name))) as lines,
            ):
                # Also of what is there still and goes later.
                packs = Moved(self._storage, listed=True).reached(pack for pack in lines.packs if pack.hash)
                runs = {lines.run, *(pack.partition("-")[0] for pack in packs)}
            given = [run for run in sorted(runs) if self._give(run, old, new, recipients)]
            self._hand_over(old, recipients, given)
            checksum, changed = rewrap_object(self._storage, name, old.identities, recipients), True
        if checksum != metadata.checksum:
            self.save_metadata(replace(metadata, checksum=checksum))
        return changed

    def _give(self, run: str, old: KeyRing, new: KeyRing, recipients: Sequence[X25519Recipient]) -> bool:
        """Gives the keys of a run to other recipients. False when they have them already, or all the world has."""
        path = f"keys/{run}.age"
        if not self._storage.exists(path):
            return False
        # With recipients alone it cannot be tried whether they open it: then that the old ones do not tells as much.
        if new.can_decrypt:
            given = is_opened_by(self._storage, path, new.identities)
        else:
            given = not is_opened_by(self._storage, path, old.identities)
        if given:
            return False
        return rewrap_run_keys(self._storage, run, old.identities, recipients)

    def _hand_over(self, old: KeyRing, recipients: Sequence[X25519Recipient], runs: Sequence[str]) -> None:
        """What is known to be stored in these runs is found again by those that are made for the new recipients."""
        repository = open_repository(self._storage, create=False)
        pinned = WriterState.load(self._directory / _PINNED, repository)
        if pinned is None or not runs:
            return
        before = {recipient for recipient in old.recipients if isinstance(recipient, X25519Recipient)}
        before |= {identity.recipient for identity in old.identities if isinstance(identity, X25519Identity)}
        given = {run: key_file_digest(self._storage, run, encrypted=True) for run in runs}
        old_memories = self._memories(repository, pinned.id_key, sorted(before, key=str))
        memories = self._memories(repository, pinned.id_key, recipients)
        for writer, known in memories.by_writer.items():
            known.take_over(old_memories.by_writer[writer], given)

    def clean(self) -> list[str]:
        """Takes back what runs that were killed have left, but for finished packs: the next run finds those."""
        cleaned = []
        for metadata in self.backups():
            if metadata.status != RUNNING or metadata.format != "dedup":
                continue
            try:
                with self._storage.lock(f"run-{metadata.backup_id}"):
                    # Since it was listed, it may have ended well.
                    if not self._is_running(metadata):
                        continue
                    self._storage.delete(names.manifest_name(metadata.backup_id))
                    error = StorageError("the run was cut off: killed, or the machine went down")
                    self.record_failure(metadata, error)
                    cleaned.append(metadata.backup_id)
            except LockHeld:
                continue  # it is at work
        return cleaned

    def _is_running(self, metadata: BackupMetadata) -> bool:
        name = names.metadata_name(metadata.backup_id)
        return self._storage.exists(name) and self._load(name).status == RUNNING

    def mend(self) -> Iterator[Mending]:
        """Writes anew what is damaged and its parity mends, once it is proved; and parity that is damaged, or
        missing where there is to be some. Tells of each object that was not as it should be."""
        if not self._storage.exists(MARK):
            return
        repository = open_repository(self._storage, create=False)
        proof = Proof(
            repository=repository,
            keys=self._seal.keys,
            opened=self._opened_keys,
            keys_of=self._keys_of,
            metadata_of=self._metadata_of,
            known=self._remembered(repository),
        )
        yield from Mender(self._plain, proof.check, gives_parity=self._gives_parity).run(self._is_at_work)

    def _remembered(self, repository: str) -> dict[str, str]:
        """The SHA-256 of key files, and of the identity's, that this host has seen to be good."""
        try:
            pinned = WriterState.load(self._directory / _PINNED, repository)
            keys = self._seal.keys() if self._seal.encrypt else KeyRing((), ())
        except (RepositoryError, CredentialError):
            return {}
        if pinned is None:
            return {}
        recipients = [known for known in keys.recipients if isinstance(known, X25519Recipient)]
        if passphrases(keys) and pinned.recipient:
            recipients.append(X25519Recipient.parse(pinned.recipient))
        known = self._memories(repository, pinned.id_key, recipients).own.key_files()
        suffix = "age" if self._seal.encrypt else "json"
        found = {f"keys/{run}.{suffix}": digest for run, digest in known.items()}
        return found | ({IDENTITY: pinned.identity} if pinned.identity else {})

    def _metadata_of(self, backup_id: str) -> BackupMetadata | None:
        """None where it is lost, or damaged."""
        name = names.metadata_name(backup_id) if is_backup_id(backup_id) else ""
        found = self._load(name) if name and self._storage.exists(name) else None
        return found if found is not None and found.status != DAMAGED else None

    def _is_at_work(self, name: str) -> bool:
        """Whether a manifest, or metadata, is of a run that has not ended."""
        found = self._metadata_of(names.id_of_metadata(name) or names.manifest_id(name) or "")
        return found is not None and found.status == RUNNING

    def rebuild_list(self, metadata: BackupMetadata) -> bool:
        """Makes the list of a backup in the local state again. False when it is there already."""
        found = lists.open_list(self._state, metadata)
        if found is not None:
            found.close()
            return False
        with ExitStack() as stack:
            self._state.make()
            lists.save(self._state, metadata, self._manifest(stack, metadata).as_list())
        return True

    def orphans(self) -> list[str]:
        """The names of manifests whose metadata is lost, or damaged."""
        recorded = {known.backup_id for known in self.backups() if known.status != DAMAGED}
        return [
            name
            for directory in names.DIRECTORIES.values()
            for name in self._storage.names(directory)
            if (backup_id := names.manifest_id(name)) is not None and backup_id not in recorded
        ]

    def examine(self, name: str) -> BackupMetadata:
        """The metadata of a manifest that has lost its own, unsigned. What its run added is not known any more."""
        with self._open_object(name) as file:
            mend_first(file)
            encrypted = is_age_file(file.read_at(0, 64))
            keys = self._opened_keys() if encrypted else None
            with closing(ManifestReader(file, None, keys, name=name)) as lines:
                header = lines.header
                return BackupMetadata(
                    backup_id=header.id,
                    timestamp=header.time,
                    version=METADATA_VERSION,
                    type=header.type,
                    size_bytes=file.size,
                    checksum=self._checksum(name),
                    components=header.components,
                    status="success",
                    format="dedup",
                    parent=header.parent,
                    encrypted=encrypted,
                    entries=lines.end.entries,
                    source_bytes=lines.end.bytes,
                    host=header.host,
                    tool=header.tool,
                    tags=header.tags,
                    schedule_id=header.schedule_id,
                    original=header.original,
                    coherent=lines.end.coherent,
                    manifest=ManifestLocation(lines.digest, lines.size, 0),
                )

    def remember(self) -> int:
        """Learns again which chunks this host has stored, and what others have that it trusts, so that they are not
        stored once more. Returns how many packs were learnt."""
        repository = open_repository(self._storage, create=False)
        pinned, recipients = self._pinned(repository, self._seal.keys() if self._seal.encrypt else None)
        memories = self._memories(repository, pinned.id_key, recipients)
        learnt, _ = learn(
            self._storage,
            memories,
            repository=repository,
            id_key=pinned.id_key,
            audience=audience(recipients),
        )
        return learnt

    def writer_key(self) -> str:
        """What another host needs, beside recipients, to find what is stored here: the id key, spelled. Secret.

        Raises KeyMissing where this host neither has it nor can read it."""
        repository = open_repository(self._storage, create=False)
        pinned = WriterState.load(self._directory / _PINNED, repository)
        id_key = pinned.id_key if pinned is not None else self._shared_id_key()
        if id_key is None:
            raise KeyMissing(
                "this host has no id key of the repository, and no backup that it believes and can read tells it",
                hint="Run it on a host that makes backups.",
            )
        return spell_writer_key(repository, id_key)

    def adopt_writer_key(self, text: str) -> bool:
        """Names chunks from now on with the id key that `writer_key` gave on another host. False when this host does
        so already. Raises KeyWrong when it is none, or of another repository; RepositoryError when this host has made
        backups with an id key of its own."""
        named, id_key = parse_writer_key(text)
        repository = open_repository(self._storage, create=False)
        if named != repository:
            raise KeyWrong(
                f"the writer key is of repository {named}, and this is {repository}",
                hint="Print it with `holdfast key writer` on a host that backs up to this directory.",
            )
        path = self._directory / _PINNED
        pinned = WriterState.load(path, repository)
        if pinned is not None and pinned.id_key == id_key:
            return False
        own = next(
            (known for known in self.backups() if known.format == "dedup" and self._is_own(known)), None
        )
        if pinned is not None and own is not None:
            raise RepositoryError(
                f"this host has made {own.backup_id} with an id key of its own: what it has stored under that is not "
                "found again under another",
                hint=f"If it may be stored once more, delete {path} and try again. Backups stay as they are.",
            )
        pinned = WriterState(repository, id_key) if pinned is None else replace(pinned, id_key=id_key)
        pinned.save(path)
        return True

    def _is_own(self, metadata: BackupMetadata) -> bool:
        """Whether this host has made a backup, as its signature proves. Others may store anything under an id."""
        signature, statement = self.signature_of(metadata)
        return (
            signature is not None
            and signature.key == self._writer()
            and self._seal.believes(signature, statement)
        )

    def collect(self) -> Collected:
        """Frees what no backup needs, in two phases: what is condemned now is deleted by a later call. Packs of which
        much is of no use are written anew. Needs the identity. Safe beside runs at work; see `Garbage`.

        Raises CorruptBackup where it cannot be told what is needed.
        """
        if orphans := self.orphans():
            raise CorruptBackup(
                f"{orphans[0]} has no metadata, or it is damaged: so what nothing needs cannot be told",
                hint="Run `holdfast repair`, or delete the manifest if the backup is not wanted.",
            )
        moved = Moved(self._storage, listed=True)
        survey = Survey(self._storage, self._keys_of, moved)
        runs: set[str] = set()
        at_work = []
        key_files = list(self._storage.names("keys/"))  # before runs: see `Garbage.free`
        for metadata in self.backups():
            if metadata.format != "dedup":
                continue
            if metadata.status == RUNNING:
                # The time of a copy is not that at which it began. Nothing is deleted until it has ended.
                copied = metadata.original is not None
                at_work.append(datetime.min.replace(tzinfo=UTC) if copied else metadata.moment)
            elif metadata.is_good:
                with ExitStack() as stack, _telling_what_stops(metadata):
                    manifest = self._manifest(stack, metadata)
                    survey.add(manifest, metadata.backup_id)
                    runs.add(manifest.run)
        named = list(survey.named.values())
        survey.follow()
        survey.look()
        collecting = Collecting(self._storage, survey, moved, self._keys_of, self._writer_here, self._clock)
        needed = collecting.needed()
        collecting.shorten()
        # First: so there is room for what is written.
        collecting.free(needed, runs, at_work, key_files)
        collecting.rewrite()
        collecting.forget_marks(named)
        collecting.count()
        return collecting.done

    def _writer_here(self) -> WriterHere:
        repository = open_repository(self._storage, create=False)
        pinned, recipients = self._pinned(repository, self._seal.keys() if self._seal.encrypt else None)
        return WriterHere(
            repository,
            pinned.id_key,
            self._writer(),
            recipients,
            self._opened_keys().identities if self._seal.encrypt else (),
            self._memories(repository, pinned.id_key, recipients).own,
            self._seal.sign,
        )

    @property
    def _directory(self) -> Path:
        directory = self._state.repository / "dedup"
        make_private(directory, directory)
        return directory

    def _pinned(
        self, repository: str, keys: KeyRing | None
    ) -> tuple[WriterState, tuple[X25519Recipient, ...] | None]:
        path = self._directory / _PINNED
        pinned = WriterState.load(path, repository)
        before = None if pinned is None else replace(pinned)
        if pinned is None:
            pinned = WriterState(repository, self._shared_id_key() or secrets.token_bytes(KEY_LENGTH))
        recipients = recipients_for(self._storage, keys, pinned) if keys is not None else None
        if pinned != before:
            pinned.save(path)
        return pinned, recipients

    def _memories(
        self, repository: str, id_key: bytes, recipients: Sequence[X25519Recipient] | None
    ) -> Memories:
        """What is remembered to be stored for these recipients, by this host and by those that it trusts."""

        def of(writer: str) -> Known:
            return Known(
                self._directory,
                repository=repository,
                writer=writer,
                id_key=id_key,
                audience=audience(recipients),
            )

        own = of(self._writer())
        by_writer = {fingerprint(self._writer()): own}
        for writer in self._trust_writers:
            if writer not in by_writer:
                by_writer[writer] = of(writer)
        return Memories(own, by_writer)

    def _shared_id_key(self) -> bytes | None:
        """That of the newest backup that is believed here and can be read: then what it has stored is found again."""
        for metadata in self.backups():
            if (
                metadata.is_good
                and metadata.format == "dedup"
                and self._seal.believes(*self.signature_of(metadata))
            ):
                try:
                    with ExitStack() as stack:
                        return self._keys_of(self._manifest(stack, metadata).run).id_key
                except (CorruptBackup, CredentialError):
                    return None
        return None
