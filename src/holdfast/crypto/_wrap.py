"""How a recipient wraps the file key into a stanza, and an identity unwraps it again.

The two kinds of https://age-encryption.org/v1 that Holdfast has keys for: X25519 and scrypt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from holdfast.crypto._header import Stanza, decode_base64, encode_base64, hkdf, malformed
from holdfast.crypto.keys import Identity, PassphraseIdentity, PassphraseRecipient, Recipient, X25519Identity
from holdfast.errors import ConfigError, HostileBackup, KeyMissing, KeyWrong

FILE_KEY_LENGTH = 16
# logN: the work is 2 to this power. 18 takes about a second and 256 MiB, 20 four times both.
DEFAULT_WORK_FACTOR = 18
MAX_WORK_FACTOR = 20

_X25519_INFO = b"age-encryption.org/v1/X25519"
_SCRYPT_LABEL = b"age-encryption.org/v1/scrypt"
_SHARE_LENGTH = 32
_SALT_LENGTH = 16
_BODY_LENGTH = FILE_KEY_LENGTH + 16
# Each wrap key is used once, so its nonce may be constant.
_NONCE = bytes(12)
_DECIMAL = re.compile(r"[1-9][0-9]*")


def wrap(file_key: bytes, recipients: Sequence[Recipient], work_factor: int) -> list[Stanza]:
    """Wrap the file key for each recipient; ``work_factor`` is scrypt's logN, 1 to 20.

    Raises ``KeyMissing`` without recipients, and ``ConfigError`` for a passphrase beside other recipients
    (either of them could replace the file, so the passphrase would prove nothing) and for a work factor out
    of range.
    """
    if not recipients:
        raise KeyMissing(
            "There is no key to encrypt with.",
            hint="Set ENCRYPTION_KEY: `holdfast key new` makes a key. Or set BACKUP_ENCRYPT=false.",
        )
    if len(recipients) > 1 and any(isinstance(recipient, PassphraseRecipient) for recipient in recipients):
        raise ConfigError(
            "A passphrase cannot be combined with another recipient.",
            hint="Set ENCRYPTION_KEY to the passphrase alone, or to recipients alone.",
        )
    if not 1 <= work_factor <= MAX_WORK_FACTOR:
        raise ConfigError(f"The scrypt work factor is {work_factor}, and must be 1 to {MAX_WORK_FACTOR}.")
    return [
        _wrap_scrypt(file_key, recipient, work_factor)
        if isinstance(recipient, PassphraseRecipient)
        else _wrap_x25519(file_key, recipient.public_key)
        for recipient in recipients
    ]


def unwrap(stanzas: Sequence[Stanza], identities: Sequence[Identity], name: str) -> bytes:
    """Return the file key, by the first identity that opens a stanza; ``name`` is what errors call the file.

    Raises ``CorruptBackup`` for a malformed stanza, ``HostileBackup`` for a scrypt cost above 2**20,
    ``KeyMissing`` without identities, ``KeyWrong`` when none fits.
    """
    wrapped = _recognize(stanzas, name)
    if not identities:
        raise KeyMissing(
            f"There is no key that decrypts, and {name} is encrypted.",
            hint="A recipient (age1…) only encrypts: set ENCRYPTION_KEY to the identity (AGE-SECRET-KEY-1…).",
        )
    for identity in identities:
        for one in wrapped:
            file_key = _unwrap(one, identity, name)
            if file_key is not None:
                return file_key
    raise KeyWrong(
        f"None of the configured keys opens {name}.",
        hint="Set ENCRYPTION_KEY to the identity or passphrase that it was encrypted with.",
    )


@dataclass(frozen=True)
class _X25519:
    share: bytes
    body: bytes


@dataclass(frozen=True)
class _Scrypt:
    salt: bytes
    work_factor: int
    body: bytes


def _recognize(stanzas: Sequence[Stanza], name: str) -> list[_X25519 | _Scrypt]:
    """Return the stanzas of a known kind, and refuse what the format forbids in them."""
    wrapped: list[_X25519 | _Scrypt] = []
    for stanza in stanzas:
        match stanza.arguments:
            case ("X25519", share):
                wrapped.append(_X25519(_decode(share, _SHARE_LENGTH, name), _body(stanza, name)))
            case ("scrypt", salt, work_factor):
                if len(stanzas) > 1:
                    raise malformed(name, "a passphrase must be the only recipient")
                cost = _work_factor(work_factor, name)
                wrapped.append(_Scrypt(_decode(salt, _SALT_LENGTH, name), cost, _body(stanza, name)))
            case (("X25519" | "scrypt") as kind, *_):
                raise malformed(name, f"a recipient of kind {kind} has too few or too many arguments")
    return wrapped


def _decode(text: str, length: int, name: str) -> bytes:
    value = decode_base64(text.encode())
    if value is None or len(value) != length:
        raise malformed(name, "a recipient's argument has the wrong length or spelling")
    return value


def _body(stanza: Stanza, name: str) -> bytes:
    # Before decrypting: a longer body can be made to open under many passphrases, which helps to guess one.
    if len(stanza.body) != _BODY_LENGTH:
        raise malformed(name, "a wrapped key has the wrong length")
    return stanza.body


def _work_factor(text: str, name: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise malformed(name, "its scrypt work factor is not a number")
    # The length first: a number of a million digits is not worth converting.
    if len(text) > 2 or int(text) > MAX_WORK_FACTOR:
        raise HostileBackup(
            f"The header of {name} asks for more work than its passphrase may cost (2**{MAX_WORK_FACTOR}).",
            hint="If you made it so, decrypt it with `age -d`. If not, find out who wrote it.",
        )
    return int(text)


def _wrap_x25519(file_key: bytes, recipient: bytes) -> Stanza:
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    key = hkdf(secret, salt=share + recipient, info=_X25519_INFO)
    return Stanza(
        ("X25519", encode_base64(share).decode()), ChaCha20Poly1305(key).encrypt(_NONCE, file_key, None)
    )


def _wrap_scrypt(file_key: bytes, recipient: PassphraseRecipient, work_factor: int) -> Stanza:
    salt = os.urandom(_SALT_LENGTH)
    key = _scrypt(recipient.encode(), salt, work_factor)
    arguments = ("scrypt", encode_base64(salt).decode(), str(work_factor))
    return Stanza(arguments, ChaCha20Poly1305(key).encrypt(_NONCE, file_key, None))


def _unwrap(wrapped: _X25519 | _Scrypt, identity: Identity, name: str) -> bytes | None:
    match wrapped, identity:
        case _X25519(), X25519Identity():
            private_key = X25519PrivateKey.from_private_bytes(identity.secret_key)
            try:
                secret = private_key.exchange(X25519PublicKey.from_public_bytes(wrapped.share))
            except ValueError:
                raise malformed(name, "a recipient's share is a point of low order") from None
            salt = wrapped.share + private_key.public_key().public_bytes_raw()
            key = hkdf(secret, salt=salt, info=_X25519_INFO)
        case _Scrypt(), PassphraseIdentity():
            key = _scrypt(identity.encode(), wrapped.salt, wrapped.work_factor)
        case _:
            return None
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, wrapped.body, None)
    except InvalidTag:
        return None


def _scrypt(passphrase: bytes, salt: bytes, work_factor: int) -> bytes:
    """scrypt (RFC 7914) with the parameters of the format: r = 8, p = 1."""
    return Scrypt(_SCRYPT_LABEL + salt, 32, 1 << work_factor, 8, 1).derive(passphrase)
