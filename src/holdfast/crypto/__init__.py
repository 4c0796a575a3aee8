"""Encryption in the age format, its keys, and signatures.

Everything rests on the primitives of ``cryptography``; nothing here invents one.
"""

from __future__ import annotations

from holdfast.crypto.age import (
    OpeningReader,
    SealingWriter,
    header_length,
    is_age_file,
    rewrap,
)
from holdfast.crypto.keyring import KeyRing, read_key_file, write_key_file
from holdfast.crypto.keys import (
    Identity,
    PassphraseIdentity,
    PassphraseRecipient,
    Recipient,
    X25519Identity,
    X25519Recipient,
)
from holdfast.crypto.signing import SigningKey, fingerprint, verify

__all__ = [
    "Identity",
    "KeyRing",
    "OpeningReader",
    "PassphraseIdentity",
    "PassphraseRecipient",
    "Recipient",
    "SealingWriter",
    "SigningKey",
    "X25519Identity",
    "X25519Recipient",
    "fingerprint",
    "header_length",
    "is_age_file",
    "read_key_file",
    "rewrap",
    "verify",
    "write_key_file",
]
