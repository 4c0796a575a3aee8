"""Giving backups to other recipients: manifests and key files are wrapped anew, and no pack is touched."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.crypto import (
    Identity,
    KeyRing,
    OpeningReader,
    PassphraseRecipient,
    X25519Identity,
    X25519Recipient,
)
from holdfast.errors import KeyMissing, KeyWrong
from holdfast.repository._parity_storage import checked
from holdfast.repository.dedup._key_file import (
    IDENTITY,
    read_identity,
    rewrap_to,
    write_identity,
)
from holdfast.repository.dedup._writer import passphrases
from holdfast.storage.base import Storage


def rewrap_identity(storage: Storage, old: KeyRing, new: KeyRing) -> bool:
    """Gives the repository's identity another passphrase, where both keys are passphrases: then all that it opens is
    opened by the new one. False when the new one opens it already. Raises KeyWrong."""
    try:
        read_identity(storage, passphrases(new))
    except KeyWrong:
        _replace(storage, IDENTITY, passphrases(old), _passphrase_of(new))
        return True
    return False


def recipients_of(storage: Storage, new: KeyRing) -> list[X25519Recipient]:
    """Whom to encrypt to from now on; behind a passphrase, the identity that it opens, made if there is none."""
    found = [recipient for recipient in new.recipients if isinstance(recipient, X25519Recipient)]
    if passphrases(new):
        if not storage.exists(IDENTITY):
            write_identity(storage, X25519Identity.generate(), _passphrase_of(new)[0])
        found.append(read_identity(storage, passphrases(new)).recipient)
    if not found:
        raise KeyMissing("there is no recipient to encrypt to")
    return found


def rewrap_object(
    storage: Storage, name: str, old: Sequence[Identity], new: Sequence[X25519Recipient]
) -> str:
    """Gives an age file to other recipients. Returns its new SHA-256."""
    return _replace(storage, name, old, new)


def is_opened_by(storage: Storage, name: str, identities: Sequence[Identity]) -> bool:
    """Whether an age file is for one of these."""
    with storage.open(name) as file:
        try:
            checked(file, lambda: OpeningReader(file, identities, name=name))
        except KeyWrong:
            return False
    return True


def _replace(
    storage: Storage,
    name: str,
    old: Sequence[Identity],
    new: Sequence[X25519Recipient] | Sequence[PassphraseRecipient],
) -> str:
    with storage.open(name) as file:
        return checked(file, lambda: rewrap_to(storage, name, file, old, new))


def _passphrase_of(keys: KeyRing) -> list[PassphraseRecipient]:
    return [recipient for recipient in keys.recipients if isinstance(recipient, PassphraseRecipient)]
