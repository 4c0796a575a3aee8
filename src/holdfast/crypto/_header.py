"""The header of an age file: stanzas that wrap the file key, and a MAC over them.

The grammar is that of https://age-encryption.org/v1; whatever departs from it by a space or a bit is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast.errors import CorruptBackup, HostileBackup

MAGIC = b"age-encryption.org/"
# A stanza takes about 100 bytes, and a thousand recipients are more than any backup has.
MAX_HEADER_LENGTH = 1 << 20
MAX_STANZAS = 1000

_VERSION_LINE = MAGIC + b"v1"
_COLUMNS = 64
_MAC_LENGTH = 32
_ARGUMENT = re.compile(rb"[!-~]+")


@dataclass(frozen=True)
class Stanza:
    """One wrapping of the file key: the recipient's kind and what it adds, then the wrapped key."""

    arguments: tuple[str, ...]
    body: bytes


@dataclass(frozen=True)
class Header:
    """A parsed header. It is not to be believed before `verify`."""

    stanzas: tuple[Stanza, ...]
    mac: bytes

    @classmethod
    def parse(cls, raw: bytes, name: str) -> Header:
        """Read a whole header, its last line feed included; ``name`` is what errors call the file.

        Raises ``CorruptBackup`` for any departure from the grammar, ``HostileBackup`` for more than 1,000
        stanzas.
        """
        first, *lines = raw.split(b"\n")
        if first != _VERSION_LINE:
            raise malformed(name, "it is of another version than age-encryption.org/v1")
        if len(lines) < 2 or lines.pop():
            raise malformed(name, "it ends too early")
        mark, space, encoded = lines.pop().partition(b" ")
        mac = decode_base64(encoded)
        if mark + space != b"--- " or mac is None or len(mac) != _MAC_LENGTH:
            raise malformed(name, "its last line is not a MAC")
        stanzas: list[Stanza] = []
        rest = iter(lines)
        for line in rest:
            if len(stanzas) == MAX_STANZAS:
                raise HostileBackup(f"The header of {name} has more than {MAX_STANZAS} recipients.")
            stanzas.append(_parse_stanza(line, rest, name))
        if not stanzas:
            raise malformed(name, "it has no recipient")
        return cls(tuple(stanzas), mac)

    def verify(self, file_key: bytes, name: str) -> None:
        """Raise ``CorruptBackup`` unless the MAC proves that the header is as its writer made it."""
        mac = _mac(file_key, self.stanzas)
        try:
            mac.verify(self.mac)
        except InvalidSignature:
            raise CorruptBackup(f"The header of {name} was altered: its MAC does not match.") from None


def serialize(file_key: bytes, stanzas: Sequence[Stanza]) -> bytes:
    """Return a header, with its MAC, as it stands at the start of a file."""
    return _unfinished(stanzas) + b" " + encode_base64(_mac(file_key, stanzas).finalize()) + b"\n"


def find_end(prefix: bytes) -> int | None:
    """Return the length of the header that ``prefix`` starts with; None when its end is not in sight."""
    # The lines between the first and the last start with an arrow, or are base64, which has no dashes.
    mark = prefix.find(b"\n---")
    end = prefix.find(b"\n", mark + 1) if mark >= 0 else -1
    return end + 1 if end >= 0 else None


def malformed(name: str, why: str) -> CorruptBackup:
    """The error for a header that departs from the format."""
    return CorruptBackup(f"The header of {name} is malformed: {why}.")


def hkdf(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 (RFC 5869) with an output of 32 bytes, from which every key of the format comes."""
    return HKDF(SHA256(), 32, salt, info).derive(key)


def encode_base64(data: bytes) -> bytes:
    """Base64 without padding."""
    return base64.b64encode(data).rstrip(b"=")


def decode_base64(encoded: bytes) -> bytes | None:
    """The inverse of `encode_base64`; None for anything that it would not have written."""
    try:
        data = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return None
    # Catches padding, and bits set beyond the last byte.
    return data if encode_base64(data) == encoded else None


def _parse_stanza(line: bytes, rest: Iterator[bytes], name: str) -> Stanza:
    arrow, space, tail = line.partition(b" ")
    arguments = tail.split(b" ")
    if arrow + space != b"-> " or not all(_ARGUMENT.fullmatch(argument) for argument in arguments):
        raise malformed(name, "a recipient's first line is not as the format says")
    encoded = []
    for row in rest:
        encoded.append(row)
        if len(row) != _COLUMNS:
            break
    # The body ends with a line shorter than the others, which may be empty.
    body = decode_base64(b"".join(encoded))
    if not encoded or len(encoded[-1]) >= _COLUMNS or body is None:
        raise malformed(name, "a recipient's body is not as the format says")
    return Stanza(tuple(argument.decode("ascii") for argument in arguments), body)


def _unfinished(stanzas: Sequence[Stanza]) -> bytes:
    """Return the header up to and including the mark of its last line: what the MAC covers."""
    lines = [_VERSION_LINE]
    for stanza in stanzas:
        encoded = encode_base64(stanza.body)
        lines.append(" ".join(["->", *stanza.arguments]).encode("ascii"))
        # One row more than there are full ones: the last is short, or empty.
        lines += [encoded[start : start + _COLUMNS] for start in range(0, len(encoded) + 1, _COLUMNS)]
    return b"\n".join([*lines, b"---"])


def _mac(file_key: bytes, stanzas: Sequence[Stanza]) -> HMAC:
    mac = HMAC(hkdf(file_key, salt=b"", info=b"header"), SHA256())
    # The grammar has one spelling for each header, so spelling it again gives back the bytes that were read.
    mac.update(_unfinished(stanzas))
    return mac
