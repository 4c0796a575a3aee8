"""The keys of age: recipients, which encrypt, and identities, which decrypt.

Spelled as https://age-encryption.org/v1 says: ``age1…`` is a recipient, ``AGE-SECRET-KEY-1…`` an identity;
a passphrase is both at once. ``repr`` and ``str`` of a key never show a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from holdfast.crypto import _bech32
from holdfast.errors import KeyMissing, KeyWrong

_RECIPIENT_PREFIX = "age"
_IDENTITY_PREFIX = "AGE-SECRET-KEY-"
_KEY_LENGTH = 32


@dataclass(frozen=True)
class X25519Recipient:
    """A public key: whoever knows it can encrypt to it."""

    public_key: bytes

    def __post_init__(self) -> None:
        public_key = X25519PublicKey.from_public_bytes(self.public_key)
        try:
            X25519PrivateKey.generate().exchange(public_key)
        except ValueError:
            # A point of low order gives everyone the same shared secret: the file would be open to all.
            raise KeyWrong(
                "The recipient is one of the few points of Curve25519 that protect nothing.",
                hint="Use a recipient made by `holdfast key new` or `age-keygen`.",
            ) from None

    @classmethod
    def parse(cls, text: str) -> X25519Recipient:
        """Read ``age1…``. Raises ``KeyWrong``, without repeating the text."""
        return cls(_decode(text, _RECIPIENT_PREFIX, "recipient (age1…)"))

    def __str__(self) -> str:
        return _bech32.encode(_RECIPIENT_PREFIX, self.public_key)

    def __repr__(self) -> str:
        return f"X25519Recipient({str(self)!r})"


@dataclass(frozen=True)
class X25519Identity:
    """A private key: it decrypts what was encrypted to its recipient."""

    secret_key: bytes

    def __post_init__(self) -> None:
        X25519PrivateKey.from_private_bytes(self.secret_key)

    @classmethod
    def generate(cls) -> X25519Identity:
        """Make a new one from the operating system's random numbers."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> X25519Identity:
        """Read ``AGE-SECRET-KEY-1…``. Raises ``KeyWrong``, without repeating the text."""
        return cls(_decode(text, _IDENTITY_PREFIX, "identity (AGE-SECRET-KEY-1…)"))

    @property
    def recipient(self) -> X25519Recipient:
        """The public key that belongs to it."""
        private_key = X25519PrivateKey.from_private_bytes(self.secret_key)
        return X25519Recipient(private_key.public_key().public_bytes_raw())

    def reveal(self) -> str:
        """Return ``AGE-SECRET-KEY-1…``: the secret itself, for a key file and nothing else."""
        return _bech32.encode(_IDENTITY_PREFIX, self.secret_key)

    def __repr__(self) -> str:
        return f"X25519Identity(of {self.recipient})"


@dataclass(frozen=True)
class _Passphrase:
    passphrase: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.passphrase:
            raise KeyMissing("The passphrase is empty.", hint="Set ENCRYPTION_KEY to a long one.")
        try:
            self.encode()
        except UnicodeEncodeError:
            raise KeyWrong(
                "The passphrase has a character that UTF-8 cannot write.",
                hint="Set ENCRYPTION_KEY to plain text.",
            ) from None

    def encode(self) -> bytes:
        """Return what scrypt takes: UTF-8, and bytes of the environment that are not UTF-8 as they were."""
        return self.passphrase.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class PassphraseRecipient(_Passphrase):
    """A passphrase to encrypt with. In its file it is the only recipient."""


@dataclass(frozen=True)
class PassphraseIdentity(_Passphrase):
    """A passphrase to decrypt with."""

    @property
    def recipient(self) -> PassphraseRecipient:
        """The same passphrase, to encrypt with."""
        return PassphraseRecipient(self.passphrase)


Recipient = X25519Recipient | PassphraseRecipient
Identity = X25519Identity | PassphraseIdentity


def _decode(text: str, prefix: str, what: str) -> bytes:
    try:
        found, data = _bech32.decode(text)
    except ValueError as error:
        raise _malformed(what, str(error)) from None
    if found != prefix:
        raise _malformed(what, "it is of another kind, and only these are supported")
    if len(data) != _KEY_LENGTH:
        raise _malformed(what, "it has the wrong length")
    return data


def _malformed(what: str, why: str) -> KeyWrong:
    return KeyWrong(
        f"The {what} is malformed: {why}.",
        hint="Copy it again, whole, from where it was made, into ENCRYPTION_KEY.",
    )
