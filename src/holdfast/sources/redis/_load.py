"""Filling a spare logical database from a dump, and checking what has arrived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from holdfast.errors import CorruptBackup, NoSpace, RestoreError
from holdfast.sources.redis._connection import RESTORE, Command, Refused, Server, Session, select
from holdfast.sources.redis._rdb import Key, RdbReader, shown_key

_BATCH_BYTES = 1 << 20
_BATCH_KEYS = 500
_EXPANSION = 3
"""A value in memory takes at most about so much more than in a dump; far more only where it is compressed."""
_HORIZON_S = 86_400
_PROBED = 15
"""Where the server does not tell how many databases it has: the last one of an untouched configuration."""


@dataclass(slots=True)
class Loaded:
    """What was carried over."""

    keys: int = 0
    soon: dict[int, int] = field(default_factory=dict)
    """Keys by the second, on the server's clock, in which they expire; those that expire within a day."""
    later: int = 0
    """Keys that expire after that."""

    def expired_by(self, second: int, start: int) -> int:
        """How many keys have perhaps expired by then."""
        if second - start >= _HORIZON_S:
            return sum(self.soon.values()) + self.later
        return sum(count for at, count in self.soon.items() if at <= second)


def spares(session: Session, live: int) -> Iterator[int]:
    """Logical databases that are empty: the last ones first, which are the least likely to be somebody's; 0 at the
    very end. Raises Lost, Refused."""
    taken = {int(name[2:]) for name in session.info("keyspace") if name[:2] == "db" and name[2:].isdigit()}
    try:
        answer = session.command("CONFIG", "GET", "databases")
        count = int(answer[1])
    except (Refused, IndexError, ValueError, TypeError):
        count = _PROBED + 1
    for number in range(count - 1, -1, -1):
        if number == live or number in taken:
            continue
        try:
            if select(session, number) == 0:
                yield number
        except Refused as error:
            if "out of range" not in str(error):
                raise


def server_rdb_version(session: Session, key: str) -> int | None:
    """The version of the format that the server writes, seen in its DUMP of a key; None if it may not be seen."""
    try:
        payload = session.command("DUMP", key)
    except Refused:
        return None
    return int.from_bytes(payload[-10:-8], "little") if isinstance(payload, bytes) else None


def load(session: Session, server: Server, reader: RdbReader) -> Loaded:
    """Restores every key into the selected database, and checks that they are there, beside one marker.

    Raises CorruptBackup, NoSpace, RestoreError, Refused, Lost.
    """
    start, _ = map(int, session.command("TIME"))
    loaded = Loaded()
    room = _Room(session, server)
    batch: list[tuple[Key, Command]] = []
    size = 0
    for key in reader.read_keys():
        payload = key.payload(reader.version)
        # A time before 1970 counts as one just after it; 0 would mean that the key never expires.
        expiry = 0 if key.expiry_ms is None else max(1, key.expiry_ms)
        batch.append((key, ("RESTORE", key.name, expiry, payload, "ABSTTL")))
        size += len(payload)
        loaded.keys += 1
        if expiry:
            second = expiry // 1000
            if second > start + _HORIZON_S:
                loaded.later += 1
            else:
                second = max(second, start)
                loaded.soon[second] = loaded.soon.get(second, 0) + 1
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_KEYS:
            room.check(size)
            _restore(session, server, batch)
            batch, size = [], 0
    room.check(size)
    _restore(session, server, batch)
    present = int(session.command("DBSIZE")) - 1
    end, _ = map(int, session.command("TIME"))
    least = loaded.keys - loaded.expired_by(end + 1, start)
    if not least <= present <= loaded.keys:
        raise CorruptBackup(
            f"the dump has {loaded.keys} keys, and {present} of them are in the scratch database"
        )
    return loaded


class _Room:
    """Keeps a server with a maxmemory from throwing live keys away to make room for what is staged."""

    def __init__(self, session: Session, server: Server) -> None:
        self._session = session
        self._server = server
        info = session.info("memory")
        limit = info.get("maxmemory", "0")
        self._limit = int(limit) if limit.isdigit() else 0
        if info.get("maxmemory_policy", "noeviction") == "noeviction":
            self._limit = 0  # the server refuses by itself

    def check(self, size: int) -> None:
        if not self._limit:
            return
        used = self._session.info("memory").get("used_memory", "0")
        if (int(used) if used.isdigit() else 0) + _EXPANSION * size > self._limit:
            raise NoSpace(
                f"{RESTORE} failed: {self._server} would throw live keys away to make room (maxmemory)",
                hint="A restore takes the memory of the data twice, until what was replaced is discarded. "
                "Raise maxmemory.",
            )


def _restore(session: Session, server: Server, batch: list[tuple[Key, Command]]) -> None:
    session.send([command for _, command in batch])
    answers = session.receive_all(len(batch))
    for (key, _), answer in zip(batch, answers, strict=True):
        if not isinstance(answer, Refused):
            continue
        shown = shown_key(key.name)
        text = str(answer).lower()
        if answer.code == "BUSYKEY":
            raise CorruptBackup(f"the dump has key {shown} twice") from answer
        if "bad data format" in text or "payload version or checksum" in text:
            raise CorruptBackup(f"{server} does not take the value of key {shown}: {answer}") from answer
        if "syntax error" in text:
            raise RestoreError(
                f"{RESTORE} failed: {server} does not know RESTORE with ABSTTL",
                hint="Redis 5.0 and later do.",
            ) from answer
        raise answer
