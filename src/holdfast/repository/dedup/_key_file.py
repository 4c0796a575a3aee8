"""Key files: what a run seals its packs with, readable by whoever has an identity.

A run's key file is durable before its first pack, so no pack ever waits for a key that a crash has taken.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from holdfast.clock import Clock, parse_timestamp, timestamp
from holdfast.crypto import (
    Identity,
    KeyRing,
    OpeningReader,
    PassphraseIdentity,
    PassphraseRecipient,
    SealingWriter,
    X25519Identity,
    X25519Recipient,
    rewrap,
)
from holdfast.crypto.age import CHUNK
from holdfast.errors import CorruptBackup, KeyMissing, KeyWrong
from holdfast.repository._parity_storage import checked
from holdfast.repository.dedup._ids import KEY_LENGTH
from holdfast.repository.dedup._names import is_run
from holdfast.storage.base import Storage
from holdfast.streams import RandomAccess

IDENTITY = "keys/identity.age"

# Some hundred bytes. One chunk of age is more than enough, and is all that is ever opened.
_LIMIT = CHUNK
_FILE_LIMIT = 1 << 20
"""Bytes of a key file with its header, which has a stanza for each recipient."""


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The keys of one run, and whose run it is. ``repr`` shows no key."""

    run: str
    """32 hexadecimal digits."""
    repository: str
    """The repository's id."""
    data_key: bytes = field(repr=False)
    """Seals this run's packs and index objects."""
    id_key: bytes = field(repr=False)
    """Names chunks."""
    writer: str
    """The public signing key (base64) of the host that made the run: what it says of itself, which proves nothing."""
    started: datetime
    """UTC, to the second."""

    def __post_init__(self) -> None:
        if not is_run(self.run) or not is_run(self.repository):
            raise ValueError("a run and a repository are named by 32 hexadecimal digits")
        if len(self.data_key) != KEY_LENGTH or len(self.id_key) != KEY_LENGTH:
            raise ValueError(f"the keys of a run have {KEY_LENGTH} bytes")

    @classmethod
    def generate(cls, *, repository: str, id_key: bytes, writer: str, clock: Clock) -> RunKeys:
        """A new run with a data key of its own, from the operating system's random numbers."""
        return cls(
            run=secrets.token_hex(16),
            repository=repository,
            data_key=secrets.token_bytes(KEY_LENGTH),
            id_key=id_key,
            writer=writer,
            started=clock().replace(microsecond=0),
        )


def write_run_keys(storage: Storage, keys: RunKeys, recipients: Sequence[X25519Recipient] | None) -> str:
    """Writes ``keys/<run>.age``, durably; with None, ``keys/<run>.json``, in the clear. Returns its SHA-256.

    Raises KeyMissing for no recipients, StorageError when the storage refuses or the run has a key file already.
    """
    record = {
        "run": keys.run,
        "repository": keys.repository,
        "data_key": base64.b64encode(keys.data_key).decode("ascii"),
        "id_key": base64.b64encode(keys.id_key).decode("ascii"),
        "writer": keys.writer,
        "started": timestamp(keys.started),
    }
    text = json.dumps(record).encode() + b"\n"
    return _write(storage, _path(keys.run, recipients is not None), text, recipients)


def is_for(
    storage: Storage, run: str, recipients: Sequence[X25519Recipient], identities: Sequence[Identity]
) -> bool:
    """Whether a run's key file is proved to be for these recipients and nobody else: a file does not name them, so
    the identity of each must be among `identities`."""
    mine = {identity.recipient: identity for identity in identities if isinstance(identity, X25519Identity)}
    path = _path(run, True)
    with storage.open(path) as source:
        for recipient in set(recipients):
            try:
                reader = OpeningReader(source, [mine[recipient]] if recipient in mine else [], name=path)
            except (KeyMissing, KeyWrong):
                return False
            if reader.recipients != len(set(recipients)):
                return False
    return True


def key_file_digest(storage: Storage, run: str, *, encrypted: bool) -> str:
    """The SHA-256 of a run's key file as it lies there; empty when there is none of that kind."""
    return _digest(storage, _path(run, encrypted))


def identity_digest(storage: Storage) -> str:
    """The SHA-256 of ``keys/identity.age``; empty when there is none."""
    return _digest(storage, IDENTITY)


def _digest(storage: Storage, path: str) -> str:
    try:
        return hashlib.sha256(storage.get(path, limit=_FILE_LIMIT)).hexdigest()
    except FileNotFoundError:
        return ""


def read_run_keys(storage: Storage, run: str, identities: Sequence[Identity], *, repository: str) -> RunKeys:
    """Reads a run's key file. `repository`: the id of the repository that the run must belong to.

    Raises CorruptBackup when there is none, or it is damaged, or of another run or repository; KeyMissing or
    KeyWrong when no identity opens it.
    """
    if not is_run(run):
        raise CorruptBackup(f"{run!r:.80} does not name a run")
    for encrypted in (True, False):
        path = _path(run, encrypted)
        try:
            source = storage.open(path)
        except FileNotFoundError:
            continue
        with source:
            parse = partial(parse_run_keys, source, path, identities, repository=repository)
            return checked(source, parse)
    raise CorruptBackup(
        f"run {run} has no key file: what it wrote cannot be read",
        hint=f"Put keys/{run}.age back from a copy of the repository.",
    )


def parse_run_keys(
    source: RandomAccess, path: str, identities: Sequence[Identity], *, repository: str
) -> RunKeys:
    """What an opened key file holds; `path`: ``keys/<run>.age`` or ``.json``. Raises as `read_run_keys` does."""
    run, _, suffix = path.removeprefix("keys/").partition(".")
    text = _read_age(source, identities, path) if suffix == "age" else _read_clear(source, path)
    keys = _parse(text, path)
    if keys.run != run:
        raise CorruptBackup(f"{path} is the key file of another run, {keys.run}")
    if keys.repository != repository:
        raise CorruptBackup(
            f"{path} belongs to repository {keys.repository}, and this is {repository}",
            hint="Two repositories have been mixed. Take what belongs to the other out of this one.",
        )
    return keys


def rewrap_run_keys(
    storage: Storage, run: str, identities: Sequence[Identity], recipients: Sequence[X25519Recipient]
) -> bool:
    """Replaces a run's key file by the same for other recipients. False when there is no encrypted one.

    Raises CorruptBackup for a damaged file, KeyMissing, KeyWrong, and StorageError.
    """
    path = _path(run, True)
    try:
        source = storage.open(path)
    except FileNotFoundError:
        return False
    with source:
        checked(source, lambda: rewrap_to(storage, path, source, identities, recipients))
    return True


def rewrap_to(
    storage: Storage,
    path: str,
    source: RandomAccess,
    identities: Sequence[Identity],
    recipients: Sequence[X25519Recipient] | Sequence[PassphraseRecipient],
) -> str:
    """Writes an opened age file, for other recipients, in the place of `path`. Returns its SHA-256."""
    upload = storage.create(path, replace=True)
    try:
        rewrap(source, upload, identities, recipients, name=path)
        return upload.publish()
    finally:
        upload.abort()


def write_identity(storage: Storage, identity: X25519Identity, passphrase: PassphraseRecipient) -> None:
    """Writes ``keys/identity.age``: an age identity file, to a passphrase, as ``age`` itself reads it.

    Raises StorageError when the storage refuses, or there is one already.
    """
    _write(storage, IDENTITY, identity.reveal().encode() + b"\n", [passphrase])


def read_identity(storage: Storage, passphrases: Sequence[PassphraseIdentity]) -> X25519Identity:
    """Reads ``keys/identity.age``; a second or so for scrypt.

    Raises KeyMissing when there is none, KeyWrong for another passphrase, CorruptBackup when it is damaged.
    """
    try:
        source = storage.open(IDENTITY)
    except FileNotFoundError:
        raise KeyMissing(
            f"there is no {IDENTITY}: no passphrase opens this repository",
            hint="Give its identity (AGE-SECRET-KEY-1…), or put the file back from a copy of the repository.",
        ) from None
    with source:
        return checked(source, lambda: parse_identity(source, passphrases))


def parse_identity(source: RandomAccess, passphrases: Sequence[PassphraseIdentity]) -> X25519Identity:
    """What an opened ``keys/identity.age`` holds. Raises KeyWrong, CorruptBackup."""
    text = _read_age(source, passphrases, IDENTITY)
    try:
        found = KeyRing.parse(text).identities
    except (KeyMissing, KeyWrong):
        found = ()
    if len(found) != 1 or not isinstance(found[0], X25519Identity):
        raise CorruptBackup(f"{IDENTITY} does not hold an identity")
    return found[0]


def _path(run: str, encrypted: bool) -> str:
    return f"keys/{run}.{'age' if encrypted else 'json'}"


def _write(
    storage: Storage,
    path: str,
    text: bytes,
    recipients: Sequence[X25519Recipient] | Sequence[PassphraseRecipient] | None,
) -> str:
    upload = storage.create(path)
    try:
        if recipients is None:
            upload.write(text)
        else:
            with SealingWriter(upload, recipients) as writer:
                writer.write(text)
        return upload.publish()
    finally:
        upload.abort()


def _read_age(source: RandomAccess, identities: Sequence[Identity], path: str) -> bytes:
    reader = OpeningReader(source, identities, name=path)
    if reader.size > _LIMIT:
        raise CorruptBackup(f"{path} is too large for a key file")
    return reader.read_at(0, reader.size)


def _read_clear(source: RandomAccess, path: str) -> bytes:
    if source.size > _LIMIT:
        raise CorruptBackup(f"{path} is too large for a key file")
    return source.read_at(0, source.size)


def _parse(text: bytes, path: str) -> RunKeys:
    # No cause is kept: it could quote the content.
    try:
        record = json.loads(text)
        return RunKeys(
            run=_text(record["run"]),
            repository=_text(record["repository"]),
            data_key=base64.b64decode(_text(record["data_key"]), validate=True),
            id_key=base64.b64decode(_text(record["id_key"]), validate=True),
            writer=_text(record["writer"]),
            started=parse_timestamp(_text(record["started"])),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CorruptBackup(f"{path} does not hold the keys of a run") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError
    return value
