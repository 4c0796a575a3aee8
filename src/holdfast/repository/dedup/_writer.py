"""What a host needs to write to a repository: its id key, and whom it encrypts to. Kept in the local state.

A recipient or an id key that is read from the repository proves nothing about who put it there. So both are pinned
here on first use, and what is pinned wins.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.crypto import (
    KeyRing,
    PassphraseIdentity,
    PassphraseRecipient,
    X25519Identity,
    X25519Recipient,
)
from holdfast.durable import make_private, replace_file
from holdfast.errors import CorruptBackup, KeyMissing, RepositoryError, StorageError
from holdfast.repository.dedup._ids import KEY_LENGTH
from holdfast.repository.dedup._key_file import IDENTITY, read_identity, write_identity
from holdfast.repository.dedup._names import is_run
from holdfast.storage.base import Storage

MARK = "repository.json"
VERSION = 1
_LIMIT = 1 << 16


def open_repository(storage: Storage, *, create: bool) -> str:
    """The repository's id. With `create`, one is begun where there is none. Raises RepositoryError, CorruptBackup."""
    try:
        text = storage.get(MARK, limit=_LIMIT)
    except FileNotFoundError:
        if next(iter(storage.names("packs/")), None) is not None:
            raise CorruptBackup(
                f"{MARK} is missing, and there are packs",
                hint="Put it back from a copy of the repository: every manifest names the id that it holds.",
            ) from None
        if not create:
            raise RepositoryError(
                "there is no repository here yet", hint="`holdfast backup` begins one."
            ) from None
        name = secrets.token_hex(16)
        upload = storage.create(MARK)
        try:
            upload.write(_mark(name))
            upload.publish()
        except StorageError:
            if not storage.exists(MARK):
                raise
            return open_repository(storage, create=False)  # another host was first
        finally:
            upload.abort()
        return name
    try:
        data = json.loads(text)
        version, name = data["holdfast_repository"], data["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptBackup(f"{MARK} does not say which repository this is") from None
    if version != VERSION:
        raise RepositoryError(
            f"the repository is of version {version!r:.20}, and this program knows version {VERSION}",
            hint="Update Holdfast: `holdfast --version` shows yours.",
        )
    if not is_run(name):
        raise CorruptBackup(f"{MARK} does not say which repository this is")
    return str(name)


def check_mark(storage: Storage, name: str) -> None:
    """Raises CorruptBackup when `repository.json` is not as it was written, to the bit."""
    if storage.get(MARK, limit=_LIMIT) != _mark(name):
        raise CorruptBackup(f"{MARK} is damaged")


def _mark(name: str) -> bytes:
    return json.dumps({"holdfast_repository": VERSION, "id": name}).encode() + b"\n"


@dataclass(slots=True)
class WriterState:
    """What is pinned here of one repository."""

    repository: str
    id_key: bytes = field(repr=False)
    recipient: str = ""
    """Behind a passphrase: that of the repository's identity."""

    @classmethod
    def load(cls, path: Path, repository: str) -> WriterState | None:
        """None where nothing is pinned yet. Raises RepositoryError when it is of another repository."""
        try:
            data = json.loads(path.read_bytes())
            found = cls(
                _text(data["repository"]), base64.b64decode(_text(data["id_key"])), _text(data["recipient"])
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, binascii.Error):
            return None  # It is made again, at the price of storing chunks again.
        if found.repository != repository:
            raise RepositoryError(
                f"this is repository {repository}, and what this host remembers is of {found.repository}",
                hint=f"If it was replaced on purpose, delete {path}; else find out who replaced it.",
            )
        return found if len(found.id_key) == KEY_LENGTH else None

    def save(self, path: Path) -> None:
        """Durably, 0600."""
        make_private(path.parent, path.parent)
        data = {
            "repository": self.repository,
            "id_key": base64.b64encode(self.id_key).decode("ascii"),
            "recipient": self.recipient,
        }
        replace_file(path, json.dumps(data).encode())


def recipients_for(storage: Storage, keys: KeyRing, pinned: WriterState) -> tuple[X25519Recipient, ...]:
    """Whom a run encrypts to. Behind a passphrase that is an identity of the repository's own, made on first use:
    deriving a key from the passphrase is only paid for then. `pinned.recipient` is filled in."""
    found: list[X25519Recipient] = []
    for recipient in keys.recipients:
        if isinstance(recipient, X25519Recipient):
            found.append(recipient)
        elif isinstance(recipient, PassphraseRecipient):
            if not pinned.recipient:
                pinned.recipient = str(_identity(storage, keys, recipient).recipient)
            found.append(X25519Recipient.parse(pinned.recipient))
    if not found:
        raise KeyMissing("there is no recipient to encrypt to")
    return tuple(found)


def _identity(storage: Storage, keys: KeyRing, passphrase: PassphraseRecipient) -> X25519Identity:
    if storage.exists(IDENTITY):
        return read_identity(storage, passphrases(keys))
    identity = X25519Identity.generate()
    write_identity(storage, identity, passphrase)
    return identity


def passphrases(keys: KeyRing) -> list[PassphraseIdentity]:
    return [identity for identity in keys.identities if isinstance(identity, PassphraseIdentity)]


def opened(storage: Storage, keys: KeyRing) -> KeyRing:
    """The same keys, with the repository's identity where a passphrase stands for it; a second or so for that."""
    if not passphrases(keys):
        return keys
    identity = read_identity(storage, passphrases(keys))
    return KeyRing(keys.recipients, (identity,))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise TypeError
    return value
