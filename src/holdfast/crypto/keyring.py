"""What ENCRYPTION_KEY, or a key file, says: the keys to encrypt with and the keys to decrypt with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from holdfast.crypto._private_file import StrPath, read_private, write_private
from holdfast.crypto.keys import Identity, PassphraseIdentity, Recipient, X25519Identity, X25519Recipient
from holdfast.errors import KeyMissing, KeyWrong

# What holds one of these was meant as a key, even in quotes. Taken for a passphrase, a mistyped one would
# lock everyone else out, and a public one would keep nobody out.
_LOOKS_LIKE_KEY = re.compile(r"(?i:age-secret-key-|age-plugin-|\bssh-(ed25519|rsa)\b)|\b(age1|AGE1)")
_SEPARATORS = re.compile(r"[\s,]+")


@dataclass(frozen=True)
class KeyRing:
    """The keys of one installation. A host with recipients alone writes backups that it cannot read."""

    recipients: tuple[Recipient, ...]
    identities: tuple[Identity, ...]

    @property
    def can_encrypt(self) -> bool:
        """Whether there is a recipient."""
        return bool(self.recipients)

    @property
    def can_decrypt(self) -> bool:
        """Whether there is an identity."""
        return bool(self.identities)

    @classmethod
    def parse(cls, text: str | bytes) -> KeyRing:
        """Read a key in any of its forms.

        - Recipients (``age1…``), separated by spaces, commas or lines: they encrypt, and nothing decrypts.
        - Identities (``AGE-SECRET-KEY-1…``), or the text of an identity file, with ``#`` comments: all of
          them decrypt, the first one's recipient encrypts, beside any recipients given with them.
        - Anything else of one line is a passphrase, which does both; line feeds around it are dropped.

        Raises ``KeyMissing`` for an empty text; ``KeyWrong`` for a malformed key, one of a kind that is not
        supported, or several lines with no key. No error repeats any of the text.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        if not text.strip():
            raise KeyMissing(
                "The encryption key is empty.", hint="Set ENCRYPTION_KEY: `holdfast key new` makes a key."
            )
        lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
        if any(_LOOKS_LIKE_KEY.search(line) for line in lines):
            return cls._of_words([word for line in lines for word in _SEPARATORS.split(line) if word])
        passphrase = text.strip("\r\n")
        if "\n" in passphrase:
            raise KeyWrong(
                "The encryption key has several lines, and none of them is a key.",
                hint="Set ENCRYPTION_KEY to a passphrase of one line, or to a key from `holdfast key new`.",
            )
        identity = PassphraseIdentity(passphrase)
        return cls((identity.recipient,), (identity,))

    @classmethod
    def _of_words(cls, words: list[str]) -> KeyRing:
        recipients: list[Recipient] = []
        identities: list[X25519Identity] = []
        for place, word in enumerate(words, 1):
            try:
                if "AGE-SECRET-KEY-" in word.upper():
                    identities.append(X25519Identity.parse(word))
                else:
                    recipients.append(X25519Recipient.parse(word))
            except KeyWrong as error:
                # The error's text names the kind and the fault, never the word.
                raise KeyWrong(
                    f"{error} It is word {place} of the encryption key.",
                    hint="Copy the key again, whole, without quotes. A passphrase must not look like a key.",
                ) from None
        if identities:
            recipients.append(identities[0].recipient)
        return cls(tuple(dict.fromkeys(recipients)), tuple(dict.fromkeys(identities)))


def read_key_file(path: StrPath) -> KeyRing:
    """Read the keys in a file.

    Raises ``KeyMissing`` when there is no such file or nothing in it, ``CredentialError`` when other users
    may read or change it, or it cannot be read, and ``KeyWrong`` as `KeyRing.parse` does.
    """
    return KeyRing.parse(read_private(path))


def write_key_file(path: StrPath, identity: X25519Identity, created: datetime) -> None:
    """Write an identity as ``age-keygen`` does, to a new file of mode 0600, durably. ``created`` is aware.

    Raises ``CredentialError`` when the file exists already or cannot be written.
    """
    moment = created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = f"# created: {moment}\n# public key: {identity.recipient}\n{identity.reveal()}\n"
    write_private(path, text.encode("ascii"))
