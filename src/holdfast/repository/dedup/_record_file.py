"""A local file of records that is only ever added to: what a crash cuts short, or a disk damages, is not read.

::

    file     magic (8 bytes) || check (16 bytes), which only the same owner and keys have
    record   length (u32, little-endian) || content || keyed BLAKE3 of both (16 bytes)

Records say what is there, so that losing the last ones costs space and nothing else; what is no longer there is taken
out by writing the file anew. Processes may share it: each writes under a lock that lies beside it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blake3 import blake3

from holdfast.durable import explained, sync_directory

_CHECK_LENGTH = 16
_LENGTH = struct.Struct("<I")
_RECORD_LIMIT = 64 << 20


class RecordFile:
    """One such file, 0600. It need not exist; its directory must."""

    def __init__(self, path: Path, magic: bytes, *, owner: Sequence[str], key: bytes) -> None:
        """`owner` and `key`: whose memory it is. A file of others counts as empty, and is replaced."""
        self.path = path
        text = "\0".join((magic.decode("ascii"), *owner)).encode()
        self._key = blake3(key + text, derive_key_context="holdfast 2026 records of local memory").digest()
        self._head = magic + self._check(magic)
        self._inode = -1
        """Of the file that was read or written last, which is known to be good up to `_end`."""
        self._end = 0

    def read(self) -> Iterator[bytes]:
        """What the records hold, in order. The first that is not whole ends them. Raises StorageError."""
        with explained(f"cannot read {self.path}"), self._open() as file:
            if file is not None:
                yield from self._read(file, 0)

    def append(self, *contents: bytes) -> None:
        """Adds records, durably. Raises StorageError."""
        record = b"".join(self._record(content) for content in contents)
        with explained(f"cannot write {self.path}"), self._locked():
            with self._open() as file:
                if file is not None:
                    status = os.fstat(file.fileno())
                    as_known = status.st_ino == self._inode and status.st_size >= self._end
                    for _ in self._read(file, self._end if as_known else 0):
                        pass
                if file is not None and self._end:
                    file.truncate(self._end)
                    file.seek(self._end)
                    file.write(record)
                    file.flush()
                    os.fsync(file.fileno())
                    self._end += len(record)
                    return
            self._replace(iter([record]))

    def rewrite(self, change: Callable[[Iterator[bytes]], Iterator[bytes]]) -> None:
        """Replaces the records by what `change` makes of them, atomically and durably. Raises StorageError."""
        with explained(f"cannot write {self.path}"), self._locked():
            self._replace(self._record(content) for content in change(self.read()))

    def _read(self, file: IO[bytes], start: int) -> Iterator[bytes]:
        """The records from `start` on; `_end` is behind the last good one, 0 for a file of others."""
        self._inode = os.fstat(file.fileno()).st_ino
        self._end = start
        file.seek(start)
        if not start:
            if file.read(len(self._head)) != self._head:
                return
            self._end = len(self._head)
        while len(prefix := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(prefix)
            if length > _RECORD_LIMIT:
                return
            content = file.read(length)
            if len(content) != length or file.read(_CHECK_LENGTH) != self._check(prefix, content):
                return
            self._end += _LENGTH.size + length + _CHECK_LENGTH
            yield content

    def _replace(self, records: Iterator[bytes]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(self._head)
                for record in records:
                    file.write(record)
                file.flush()
                os.fsync(fd)
                end, inode = file.tell(), os.fstat(fd).st_ino
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(self.path.parent)
        self._end, self._inode = end, inode

    @contextmanager
    def _open(self) -> Iterator[IO[bytes] | None]:
        """The file; None when there is none."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        with os.fdopen(fd, "r+b") as file:
            yield file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Waits for other processes, which hold the lock only while they write a record."""
        fd = os.open(
            self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _record(self, content: bytes) -> bytes:
        prefix = _LENGTH.pack(len(content))
        return prefix + content + self._check(prefix, content)

    def _check(self, *pieces: bytes) -> bytes:
        digest = blake3(key=self._key)
        for piece in pieces:
            digest.update(piece)
        return digest.digest(length=_CHECK_LENGTH)
