"""The dump of a logical database where nobody may replicate: key by key, while the server's writers wait.

``CLIENT PAUSE <ms> WRITE`` (Redis 6.2) holds back every command that writes, and expiry; readers go on. Keys are read
into a temporary file, so that the pause is no longer than the reading, whoever takes the dump. It ends by itself when
this process dies.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import IO

from holdfast.durable import explained, private_file
from holdfast.errors import CorruptBackup, DatabaseError
from holdfast.sources.redis._connection import BACKUP, Lost, Refused, Server, Session, select, version_of
from holdfast.sources.redis._rdb import PIECE_BYTES, VERSIONS, Key, encode_key, shown_key, write_rdb

_SCANNED = 512
_ASKED = 32
"""Keys asked for at once. Their values wait in the server's memory until they are read."""
_COMPARED = 1 << 19
"""Keys compared at once, in some 50 MB of memory."""
_PAUSE_SINCE = (6, 2, 0)
_EXPIRETIME_SINCE = (7, 0, 0)


class Impossible(Exception):
    """This user, or this server, cannot pause writers either. The message says why."""


@dataclass(slots=True)
class PausedDump:
    """A whole dump in a temporary file, which is gone once it is closed."""

    file: IO[bytes]
    version: int = 0
    """Of the RDB format; 0 where there were no keys."""
    keys: int = 0
    expires: int = 0

    def pieces(self) -> Iterator[bytes]:
        self.file.seek(0)
        while piece := self.file.read(PIECE_BYTES):
            yield piece


def dump_paused(server: Server, session: Session) -> PausedDump:
    """Reads all keys. Raises Impossible, Refused, Lost, DatabaseError when it takes longer than the pause lasts,
    CorruptBackup for a key that this version cannot carry, StorageError, NoSpace."""
    info = session.info("server")
    version = version_of(info)
    if version and version < _PAUSE_SINCE:
        raise Impossible(f"Redis {info['redis_version']} cannot pause writers (6.2 and later can)")
    size = select(session, server.database)
    dump = PausedDump(private_file())
    try:
        with private_file() as seen:
            until = time.monotonic() + server.timeout
            try:
                session.command("CLIENT", "PAUSE", max(1, int(server.timeout * 1000)), "WRITE")
            except Refused as error:
                raise Impossible(str(error)) from error
            try:
                before = _writes(session)
                reading = _Reading(server, session, until, exact=bool(version >= _EXPIRETIME_SINCE))
                _fill(dump, reading.keys(seen), server.database, info.get("redis_version", ""))
                after = _writes(session)
            finally:
                _resume(server, session)
            if _is_written_to(before, after):
                raise DatabaseError(
                    f"{BACKUP} failed: {server} was written to while its writers should have waited",
                    hint="Perhaps somebody ended the pause with CLIENT UNPAUSE. Take the backup again.",
                )
            if (dump.keys != size or reading.expired) and _has_duplicates(seen):
                raise DatabaseError(
                    f"{BACKUP} failed: {server} gave keys twice, because it was reorganising its memory",
                    hint="Take the backup again.",
                )
    except BaseException:
        dump.file.close()
        raise
    return dump


def _fill(dump: PausedDump, keys: Iterator[tuple[int, Key]], database: int, server_version: str) -> None:
    first = next(keys, None)
    if first is None:
        return
    dump.version = first[0]
    if dump.version not in VERSIONS:
        raise CorruptBackup(
            f"the server's values are in version {dump.version} of the format, not known here"
        )

    def counted() -> Iterator[Key]:
        for version, key in chain((first,), keys):
            if version != dump.version:
                raise CorruptBackup("the server's values are in different versions of the format")
            dump.keys += 1
            dump.expires += key.expiry_ms is not None
            yield key

    for piece in write_rdb(dump.version, server_version, database, counted()):
        with explained("cannot keep the dump in a temporary file"):
            dump.file.write(piece)
    with explained("cannot keep the dump in a temporary file"):
        dump.file.flush()


class _Reading:
    def __init__(self, server: Server, session: Session, until: float, *, exact: bool) -> None:
        self._server = server
        self._session = session
        self._until = until
        self._exact = exact
        """Whether the server tells when a key expires, and not only in how long."""
        self.expired = 0

    def keys(self, seen: IO[bytes]) -> Iterator[tuple[int, Key]]:
        """Every key with the version of the format. `seen` gets eight bytes for each."""
        cursor = b"0"
        while True:
            cursor, names = self._session.command("SCAN", cursor, "COUNT", _SCANNED)
            for start in range(0, len(names), _ASKED):
                yield from self._some(names[start : start + _ASKED], seen)
            self._check_time()
            if cursor == b"0":
                return

    def _some(self, names: list[bytes], seen: IO[bytes]) -> Iterator[tuple[int, Key]]:
        session = self._session
        lifetime = "PEXPIRETIME" if self._exact else "PTTL"
        asked = [(word, name) for name in names for word in ("DUMP", lifetime)]
        session.send([("TIME",), *asked])
        seconds, microseconds = session.receive()
        now_ms = 0 if self._exact else int(seconds) * 1000 + int(microseconds) // 1000
        for name in names:
            try:
                payload, left = session.receive(), session.receive()
            except Refused as error:
                raise Refused(error.code, f"key {shown_key(name)}: {error}") from error
            self._check_time()
            if payload is None or left == -2:  # it has expired, and is not deleted yet
                self.expired += 1
                continue
            with explained("cannot keep the dump in a temporary file"):
                seen.write(blake2b(name, digest_size=8).digest())
            expiry = None if left == -1 else now_ms + left
            yield int.from_bytes(payload[-10:-8], "little"), encode_key(name, expiry, payload)

    def _check_time(self) -> None:
        if time.monotonic() >= self._until:
            raise DatabaseError(
                f"{BACKUP} failed: the writers of {self._server} waited for {self._server.timeout:g} s, "
                "and not all keys were read by then",
                hint="Raise database_timeout, or give the user the commands psync and replconf: nobody waits then.",
            )


def _writes(session: Session) -> tuple[str, str] | None:
    """What changes with every write. None where a snapshot changes it as well, or it may not be seen."""
    info = session.info("persistence")
    if not info or info.get("rdb_bgsave_in_progress") != "0":
        return None
    return info.get("rdb_last_save_time", ""), info.get("rdb_changes_since_last_save", "")


def _is_written_to(before: tuple[str, str] | None, after: tuple[str, str] | None) -> bool:
    # A snapshot that ends between the two sets the count of writes back.
    return before is not None and after is not None and before[0] == after[0] and before[1] != after[1]


def _resume(server: Server, session: Session) -> None:
    try:
        session.command("CLIENT", "UNPAUSE")
    except (Lost, Refused):
        # The pause ends by itself; this is only about the writers waiting less.
        with suppress(Lost, Refused), server.session() as another:
            another.command("CLIENT", "UNPAUSE")


def _has_duplicates(seen: IO[bytes]) -> bool:
    """SCAN may give a key twice while the server's table shrinks, and an RDB file must not have it twice."""
    seen.flush()
    rounds = seen.tell() // 8 // _COMPARED + 1
    for number in range(rounds):
        found: set[int] = set()
        seen.seek(0)
        while block := seen.read(PIECE_BYTES):
            for (digest,) in struct.iter_unpack("<Q", block):
                if digest % rounds == number:
                    if digest in found:
                        return True
                    found.add(digest)
    return False
