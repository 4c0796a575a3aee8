"""The age v1 file format (https://age-encryption.org/v1), written as a stream and read at any offset.

A file is a header, which wraps a fresh file key for each recipient, then a nonce, then the payload: chunks
of 64 KiB, each sealed with ChaCha20-Poly1305 under its number, the last one marked as the last. A chunk
therefore cannot be altered, moved, dropped or added unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from holdfast.crypto._header import MAGIC, MAX_HEADER_LENGTH, Header, find_end, hkdf, malformed, serialize
from holdfast.crypto._wrap import DEFAULT_WORK_FACTOR, FILE_KEY_LENGTH, unwrap, wrap
from holdfast.crypto.keys import Identity, Recipient
from holdfast.errors import CorruptBackup, StorageError
from holdfast.streams import RandomAccess, Sink

CHUNK = 64 << 10
_TAG = 16
_SEALED_CHUNK = CHUNK + _TAG
_NONCE_LENGTH = 16
_USUAL_HEADER_LENGTH = 8 << 10
_COPY_CHUNKS = 16


def is_age_file(prefix: bytes) -> bool:
    """Tell by the first 19 bytes or more whether a file is in the age format, of any version, not armored."""
    return prefix.startswith(MAGIC)


def header_length(source: RandomAccess, *, name: str = "the file") -> int:
    """Return how many bytes come before the payload's nonce. Needs no key, and authenticates nothing.

    Raises ``CorruptBackup`` when the file does not start with a header, or with one of more than 1 MiB.
    """
    return len(_read_header(source, name))


class SealingWriter:
    """Encrypts what is written to it, and writes the age file to ``out``.

    ``close`` writes the last chunk, and only then is the file whole: without it, every reader reports a
    truncated file. So an exception in a ``with`` block, or in a write, leaves the last chunk unwritten.
    ``out`` stays open.
    """

    def __init__(
        self, out: Sink, recipients: Sequence[Recipient], work_factor: int = DEFAULT_WORK_FACTOR
    ) -> None:
        """Write the header. ``work_factor`` is the base-two logarithm of scrypt's cost, for a passphrase.

        Raises ``KeyMissing`` without recipients, ``ConfigError`` for a passphrase beside other recipients
        or a work factor outside 1 to 20.
        """
        file_key = os.urandom(FILE_KEY_LENGTH)
        nonce = os.urandom(_NONCE_LENGTH)
        stanzas = wrap(file_key, recipients, work_factor)
        self._out = out
        self._cipher = _payload_cipher(file_key, nonce)
        self._pending = bytearray()
        self._number = 0
        self._closed = False
        _write_all(out, serialize(file_key, stanzas) + nonce)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt ``data`` and return its length in bytes. At most 64 KiB wait in memory for the next call.

        Raises ``ValueError`` after ``close`` or after a write that failed, and whatever ``out`` raises.
        """
        if self._closed:
            raise ValueError("write to a closed SealingWriter")
        view = memoryview(data).cast("B")
        # Until the call succeeds: after a failure there must be no way to finish the file.
        self._closed = True
        room = CHUNK - len(self._pending)
        self._pending += view[:room]
        rest = view[room:]
        if rest:
            # At least one byte waits for more: the last chunk is sealed differently, and is not empty.
            whole = (len(rest) - 1) // CHUNK
            self._seal(self._pending, last=False)
            for index in range(whole):
                self._seal(rest[index * CHUNK : (index + 1) * CHUNK], last=False)
            self._pending[:] = rest[whole * CHUNK :]
        self._closed = False
        return len(view)

    def close(self) -> None:
        """Write the last chunk. A second call does nothing, nor does one after a write that failed."""
        if not self._closed:
            self._closed = True
            self._seal(self._pending, last=True)

    def __enter__(self) -> SealingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        self._closed = True

    def _seal(self, plaintext: bytearray | memoryview, *, last: bool) -> None:
        _write_all(self._out, self._cipher.encrypt(_chunk_nonce(self._number, last=last), plaintext, None))
        self._number += 1


class OpeningReader:
    """The plaintext of an age file, at any offset. Safe to use from several threads at once.

    Nothing is given out that is not authenticated. The last chunk is checked at opening, so a truncated
    file does not open; any other damage shows when the chunk that has it is read.
    """

    size: int
    """How many bytes the plaintext has."""
    recipients: int
    """How many the file is for."""

    def __init__(
        self, source: RandomAccess, identities: Sequence[Identity], *, name: str = "the file"
    ) -> None:
        """Read and verify the header and the last chunk. ``name`` is what errors call the file.

        Raises ``CorruptBackup`` for a damaged or truncated file, ``HostileBackup`` for more than 1,000
        recipients or a scrypt cost above 2**20, ``KeyMissing`` without identities, ``KeyWrong`` when none
        fits.
        """
        raw = _read_header(source, name)
        header = Header.parse(raw, name)
        self.recipients = len(header.stanzas)
        self._file_key = unwrap(header.stanzas, identities, name)
        header.verify(self._file_key, name)
        self._nonce = source.read_at(len(raw), _NONCE_LENGTH)
        if len(self._nonce) != _NONCE_LENGTH:
            raise malformed(name, "the file ends in the nonce after it")
        self._source = source
        self._name = name
        self._kept = b""
        self._cipher = _payload_cipher(self._file_key, self._nonce)
        self._start = len(raw) + _NONCE_LENGTH
        self._payload_size = source.size - self._start
        self._chunks = -(-self._payload_size // _SEALED_CHUNK)
        self.size = self._payload_size - self._chunks * _TAG
        last_length = self._payload_size - (self._chunks - 1) * _SEALED_CHUNK
        if self._chunks < 1 or last_length < _TAG or (last_length == _TAG and self._chunks > 1):
            raise CorruptBackup(f"The payload of {name} is truncated, or has something added to it.")
        self._open_chunks(self._chunks - 1, 1)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes of plaintext from ``offset``; fewer only where the end comes first.

        Takes about four times ``length`` of memory, so ask for a megabyte or so at a time.

        Raises ``CorruptBackup`` when a chunk in that range is damaged, ``ValueError`` for a negative number.
        """
        if offset < 0 or length < 0:
            raise ValueError("offset and length must not be negative")
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first = offset // CHUNK
        plaintext, _ = self._open_chunks(first, (end - 1) // CHUNK - first + 1)
        piece = bytes(memoryview(plaintext)[offset - first * CHUNK : end - first * CHUNK])
        # Kept until the next read, and never read: when a caller lets go of each piece at once, the C library
        # hands its memory back to the system and gets it anew, page by page: a fifth of the speed.
        self._kept = piece
        return piece

    def _copy(self, out: Sink, recipients: Sequence[Recipient], work_factor: int) -> None:
        stanzas = wrap(self._file_key, recipients, work_factor)
        _write_all(out, serialize(self._file_key, stanzas) + self._nonce)
        for first in range(0, self._chunks, _COPY_CHUNKS):
            _, sealed = self._open_chunks(first, min(_COPY_CHUNKS, self._chunks - first))
            _write_all(out, sealed)

    def _open_chunks(self, first: int, count: int) -> tuple[bytearray, bytes]:
        """Return ``count`` whole chunks, opened and as they are in the file."""
        offset = first * _SEALED_CHUNK
        length = min(count * _SEALED_CHUNK, self._payload_size - offset)
        sealed = self._source.read_at(self._start + offset, length)
        if len(sealed) != length:
            raise CorruptBackup(f"While it was read, {self._name} became shorter.")
        view = memoryview(sealed)
        plaintext = bytearray(length - count * _TAG)
        for index in range(count):
            number = first + index
            nonce = _chunk_nonce(number, last=number == self._chunks - 1)
            chunk = view[index * _SEALED_CHUNK : (index + 1) * _SEALED_CHUNK]
            try:
                plaintext[index * CHUNK : (index + 1) * CHUNK] = self._cipher.decrypt(nonce, chunk, None)
            except InvalidTag:
                where = f"chunk {number + 1} of {self._chunks}"
                raise CorruptBackup(
                    f"The payload of {self._name} is damaged or cut short: {where}."
                ) from None
        return plaintext, sealed


def rewrap(
    source: RandomAccess,
    out: Sink,
    identities: Sequence[Identity],
    new_recipients: Sequence[Recipient],
    work_factor: int = DEFAULT_WORK_FACTOR,
    *,
    name: str = "the file",
) -> None:
    """Copy an age file under a new header, for other recipients; the payload stays as it is, byte for byte.

    Every chunk is authenticated on the way, so a damaged file is not copied as if it were whole. The file
    key stays too: who could read the old file, and kept its header, can read the new one.

    Raises what `OpeningReader` and `SealingWriter` raise, also after some of the copy has been written.
    """
    OpeningReader(source, identities, name=name)._copy(out, new_recipients, work_factor)


def _read_header(source: RandomAccess, name: str) -> bytes:
    for limit in (_USUAL_HEADER_LENGTH, MAX_HEADER_LENGTH):
        prefix = source.read_at(0, limit)
        if not is_age_file(prefix):
            raise malformed(name, "it does not start as the age format does")
        end = find_end(prefix)
        if end is not None:
            return prefix[:end]
    raise malformed(name, "the file, or its first MiB, ends before it does")


def _payload_cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(hkdf(file_key, salt=nonce, info=b"payload"))


def _chunk_nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _write_all(out: Sink, data: bytes) -> None:
    taken = out.write(data)
    while taken is not None and taken < len(data):
        if taken == 0:
            raise StorageError("What the encrypted data is written to takes no more.")
        data = data[taken:]
        taken = out.write(data)
