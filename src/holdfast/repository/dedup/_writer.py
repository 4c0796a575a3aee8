"""What a host needs to write to a repository: its id key, and whom it encrypts to. Kept in the local state.

A recipient or an id key that is read from the repository proves nothing about who put it there. So both are pinned
here on first use, and what is pinned wins.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Sequence
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
from holdfast.crypto import _bech32 as bech32
from holdfast.durable import make_private, replace_file
from holdfast.errors import CorruptBackup, KeyMissing, KeyWrong, RepositoryError, StorageError
from holdfast.repository.dedup._ids import KEY_LENGTH
from holdfast.repository.dedup._key_file import IDENTITY, identity_digest, read_identity, write_identity
from holdfast.repository.dedup._names import is_run
from holdfast.storage.base import Storage

MARK = "repository.json"
VERSION = 1
_LIMIT = 1 << 16
_WRITER_KEY = "HOLDFAST-WRITER-"
_WRITER_KEY_HINT = "`holdfast key writer` prints one, HOLDFAST-WRITER-1…, on a host that makes backups."


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
    return _parse_mark(text)


def _parse_mark(text: bytes) -> str:
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
    prove_mark(storage.get(MARK, limit=_LIMIT), name)


def prove_mark(content: bytes, name: str = "") -> None:
    """The same of its content; without a `name`, for whichever repository it says."""
    if content != _mark(name or _parse_mark(content)):
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
    identity: str = ""
    """The SHA-256 of the file with that identity, when it was known to be good."""
    check: str = field(default="", repr=False)
    """What tells that the passphrase is still the one that opens it: salt and digest, hexadecimal."""

    @classmethod
    def load(cls, path: Path, repository: str) -> WriterState | None:
        """None where nothing is pinned yet. Raises RepositoryError when it is of another repository."""
        try:
            data = json.loads(path.read_bytes())
            found = cls(
                _text(data["repository"]),
                base64.b64decode(_text(data["id_key"])),
                _text(data["recipient"]),
                _text(data.get("identity", "")),
                _text(data.get("check", "")),
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
            "identity": self.identity,
            "check": self.check,
        }
        replace_file(path, json.dumps(data).encode())


def recipients_for(storage: Storage, keys: KeyRing, pinned: WriterState) -> tuple[X25519Recipient, ...]:
    """Whom a run encrypts to. Behind a passphrase that is an identity of the repository's own, made on first use:
    its key is only derived then, and when the passphrase or the file is another one. `pinned` is filled in.

    Raises KeyMissing for no recipients; KeyWrong for a passphrase that does not open the identity, CorruptBackup when
    it is lost or another one: what is encrypted to it could not be read.
    """
    found: list[X25519Recipient] = []
    for recipient in keys.recipients:
        if isinstance(recipient, X25519Recipient):
            found.append(recipient)
        elif isinstance(recipient, PassphraseRecipient):
            _pin(storage, keys, recipient, pinned)
            found.append(X25519Recipient.parse(pinned.recipient))
    if not found:
        raise KeyMissing("there is no recipient to encrypt to")
    return tuple(found)


def spell_writer_key(repository: str, id_key: bytes) -> str:
    """A repository's id key as a line of text, for another host. Secret."""
    return bech32.encode(_WRITER_KEY, bytes.fromhex(repository) + id_key)


def parse_writer_key(text: str) -> tuple[str, bytes]:
    """The repository, and its id key. Raises KeyWrong, which repeats nothing of the text."""
    try:
        prefix, data = bech32.decode(text.strip())
    except ValueError as error:
        raise KeyWrong(f"this is no writer key: {error}", hint=_WRITER_KEY_HINT) from None
    if prefix.upper() != _WRITER_KEY or len(data) != 16 + KEY_LENGTH:
        raise KeyWrong("this is another kind of key than a writer key", hint=_WRITER_KEY_HINT)
    return data[:16].hex(), data[16:]


def audience(recipients: Sequence[X25519Recipient] | None) -> str:
    """Who can open what is encrypted to these; empty where nothing is encrypted."""
    return " ".join(sorted({str(recipient) for recipient in recipients or ()}))


def _pin(storage: Storage, keys: KeyRing, passphrase: PassphraseRecipient, pinned: WriterState) -> None:
    there = identity_digest(storage)
    salt, _, digest = pinned.check.partition(":")
    if pinned.recipient and there and there == pinned.identity and _hashed(passphrase, salt) == digest:
        return
    if pinned.recipient and not there:
        raise CorruptBackup(
            f"{IDENTITY} is missing: no passphrase could open the backup",
            hint="Put the file back from a copy of the repository.",
        )
    recipient = str(_identity(storage, keys, passphrase).recipient)
    if pinned.recipient and recipient != pinned.recipient:
        raise CorruptBackup(
            f"{IDENTITY} holds another identity than the one that this host encrypts to",
            hint="Put the file back from a copy of the repository, and find out who replaced it.",
        )
    salt = secrets.token_hex(16)
    pinned.recipient, pinned.identity = recipient, identity_digest(storage)
    pinned.check = f"{salt}:{_hashed(passphrase, salt)}"


def _hashed(passphrase: PassphraseRecipient, salt: str) -> str:
    """Some 50 ms: enough that trying passphrases is no quicker here than it would be worth, and little for a run."""
    return hashlib.scrypt(passphrase.encode(), salt=salt.encode(), n=1 << 14, r=8, p=1, dklen=16).hex()


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
