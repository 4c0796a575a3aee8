"""Ed25519 signatures (RFC 8032), which say what encryption does not: who wrote a backup."""

from __future__ import annotations

import base64
import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from holdfast.crypto._private_file import StrPath, read_private, write_private
from holdfast.errors import KeyWrong, UntrustedSignature

_PUBLIC_LENGTH = 32
# 128 bits: enough that nobody can make another key with the same fingerprint, few enough to compare by eye.
_FINGERPRINT_DIGITS = 32
_GROUP = 4


class SigningKey:
    """The private key with which a host signs its backups. ``repr`` shows the fingerprint alone."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new one from the operating system's random numbers."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: StrPath) -> SigningKey:
        """Read what `save` wrote.

        Raises ``KeyMissing`` when there is no such file, ``CredentialError`` when others may read or change
        it or it cannot be read, ``KeyWrong`` when it holds something else.
        """
        content = read_private(path)
        try:
            private_key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # TypeError: the key in the file is encrypted. The cause is cut off, it might quote the content.
            private_key = None
        if not isinstance(private_key, Ed25519PrivateKey):
            raise KeyWrong(
                f"{path} does not hold an Ed25519 private key.", hint="Put back the file that was saved."
            )
        return cls(private_key)

    def save(self, path: StrPath) -> None:
        """Write the key to a new file of mode 0600, durably: unencrypted PKCS#8 in PEM (RFC 5958, 7468).

        Raises ``CredentialError`` when the file exists already or cannot be written.
        """
        write_private(
            path, self._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    @property
    def public(self) -> str:
        """The public key: its 32 bytes in base64."""
        return base64.b64encode(self._private_key.public_key().public_bytes_raw()).decode("ascii")

    def sign(self, statement: bytes) -> str:
        """Return the signature of ``statement``: its 64 bytes in base64.

        The statement must say what it is about: the signature of the same bytes is as good anywhere else.
        """
        return base64.b64encode(self._private_key.sign(statement)).decode("ascii")

    def __repr__(self) -> str:
        return f"SigningKey({fingerprint(self.public)})"


def verify(public: str, signature: str, statement: bytes) -> bool:
    """Tell whether ``signature`` is that of ``statement`` by ``public``. A malformed one is not."""
    try:
        key = Ed25519PublicKey.from_public_bytes(_decode(public))
        key.verify(_decode(signature), statement)
    except (ValueError, InvalidSignature):
        return False
    return True


def fingerprint(public: str) -> str:
    """Return a public key's short name, to compare by eye: ``SHA256:89AB-CDEF-…``, 128 bits of its digest.

    Raises ``UntrustedSignature`` when it is not a public key.
    """
    try:
        raw = _decode(public)
    except ValueError:
        raw = b""
    if len(raw) != _PUBLIC_LENGTH:
        raise UntrustedSignature(
            "The public key that a backup names is malformed.",
            hint="Find out who could write to the backup directory.",
        )
    digits = hashlib.sha256(raw).hexdigest().upper()[:_FINGERPRINT_DIGITS]
    return "SHA256:" + "-".join(digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP))


def _decode(text: str) -> bytes:
    """Strict base64. Raises ``ValueError`` (``binascii.Error`` is one)."""
    return base64.b64decode(text.encode("ascii"), validate=True)
