"""RDB files, read as a stream and written: https://github.com/redis/redis/blob/7.4/src/rdb.c.

A file is ``REDIS``, four digits of a version, and records; each begins with a byte that says what it is. The records
of a key are its expiry, where it has one, and its type, name and value. The last record is followed by a CRC-64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from holdfast.errors import CorruptBackup
from holdfast.sources.redis._crc64 import crc64
from holdfast.sources.redis._values import (
    MODULE,
    STRING_LIMIT,
    UnknownType,
    module_name,
    read_length,
    read_string,
    skip_module,
    skip_string,
    skip_value,
)
from holdfast.text import harmless

VERSIONS = range(5, 13)
"""Of the format. Those before have no checksum; the last is that of Redis 7.4 and 8.0."""
PIECE_BYTES = 1 << 20

_SLOT_INFO, _FUNCTION, _MODULE_AUX = 244, 245, 247
_AUX, _RESIZE, _EXPIRY_MS, _SELECT, _END = 250, 251, 252, 254, 255
_HEADER_BYTES = 9
_READ_BYTES = 256 * 1024
_RECORD_LIMIT = STRING_LIMIT + (1 << 20)
_SHOWN = 200

_T = TypeVar("_T")
_Parse = Callable[[bytes, int], tuple[_T, int]]


class Key:
    """A key with its value, as they stand in the file."""

    __slots__ = ("_value_at", "expiry_ms", "raw")

    def __init__(self, expiry_ms: int | None, raw: bytes, value_at: int) -> None:
        self.expiry_ms = expiry_ms
        """Milliseconds since 1970; None for a key that stays."""
        self.raw = raw
        """Type, name and value."""
        self._value_at = value_at

    @property
    def name(self) -> bytes:
        """Raises CorruptBackup where it is not compressed as it should be."""
        return read_string(self.raw, 1)[0]

    def payload(self, version: int) -> bytes:
        """What RESTORE takes: type and value, the version of the format, and a checksum."""
        data = b"".join((self.raw[:1], self.raw[self._value_at :], version.to_bytes(2, "little")))
        return data + crc64(data).to_bytes(8, "little")


class RdbReader:
    """The keys of one logical database in a stream. Holds one value at a time."""

    def __init__(self, pieces: Iterator[bytes | memoryview], database: int | None = None) -> None:
        """`database`: the keys of others are passed over. None takes the keys of the only one there may be."""
        self._pieces = pieces
        self._wanted = database
        self._buffer = b""
        self._at = 0
        self._crc = 0
        self._selected: int | None = None
        self.version = 0
        """Of the format. Known once `read_header` was called."""
        self.functions = 0
        """Libraries of functions that were passed over: they belong to the server."""
        self.module_data: set[str] = set()
        """Modules whose data, beside that in keys, was passed over: it belongs to the server."""

    def read_header(self) -> None:
        """Raises CorruptBackup for what is no RDB file, or of a version that is not known here."""
        header = self._take(lambda data, at: (data[at : at + _HEADER_BYTES], at + _HEADER_BYTES))
        if not header.startswith(b"REDIS") or not header[5:].isdigit():
            raise CorruptBackup("it is no RDB file of Redis")
        self.version = int(header[5:])
        if self.version not in VERSIONS:
            raise CorruptBackup(
                f"it is an RDB file of version {self.version}, and known are {VERSIONS[0]} to {VERSIONS[-1]}",
                hint="Perhaps a newer Holdfast knows it.",
            )

    def read_keys(self) -> Iterator[Key]:
        """Every key, to the end, whose checksum is compared. After `read_header`.

        Raises CorruptBackup for what is cut off or damaged, and for what this version cannot carry: it names the
        key and the type. Also raises what the stream raises.
        """
        while True:
            key = self._take(self._parse_record)
            if isinstance(key, Key):
                yield key
            elif key == _END:
                break
        self._check_end()

    @property
    def rest(self) -> bytes:
        """What was read of the stream beyond the end of the file."""
        return self._buffer[self._at :]

    def _parse_record(self, data: bytes, at: int) -> tuple[Key | int | None, int]:
        expiry: int | None = None
        while True:
            kind = data[at]
            at += 1
            if kind < _SLOT_INFO:
                return self._parse_key(kind, expiry, data, at)
            match kind:
                case 252:  # its expiry, in milliseconds
                    expiry = int.from_bytes(data[at : at + 8], "little", signed=True)
                    at += 8
                case 253:  # in seconds
                    expiry = 1000 * int.from_bytes(data[at : at + 4], "little", signed=True)
                    at += 4
                case 248:  # How long ago, or how often, a key was used is no part of the data.
                    _, at = read_length(data, at)
                case 249:
                    at += 1
                case _:
                    return self._parse_other(kind, data, at)

    def _parse_key(self, kind: int, expiry: int | None, data: bytes, at: int) -> tuple[Key | None, int]:
        start = at - 1
        name_at = at
        at = value_at = skip_string(data, at)
        if at > len(data):
            return None, at
        wanted = self._is_wanted()
        try:
            end = skip_value(kind, data, at)
        except UnknownType as error:
            self._refuse(data, name_at, f"is of {error}, which this version cannot carry")
        except IndexError:
            if len(data) - start <= _RECORD_LIMIT:
                raise
            end = len(data)
        if end - start > _RECORD_LIMIT:
            self._refuse(data, name_at, f"has a value of more than {STRING_LIMIT >> 20} MiB")
        if end > len(data) or not wanted:
            return None, end
        if kind == MODULE:
            self._refuse(
                data, name_at, f"is of type {module_name(data, at)}, which only its module can carry"
            )
        return Key(expiry, data[start:end], value_at - start), end

    def _is_wanted(self) -> bool:
        if self._selected is None:
            raise CorruptBackup("a key stands in no database")
        return self._wanted is None or self._selected == self._wanted

    def _parse_other(self, kind: int, data: bytes, at: int) -> tuple[int | None, int]:
        if kind == _END:
            return _END, at
        if kind == _SELECT:
            number, at = read_length(data, at)
            if self._wanted is None and self._selected not in (None, number):
                raise CorruptBackup("it holds more than one logical database")
            self._selected = number
        elif kind == _AUX:
            at = skip_string(data, at)
            at = skip_string(data, at)
        elif kind in (_RESIZE, _SLOT_INFO):
            for _ in range(2 if kind == _RESIZE else 3):
                _, at = read_length(data, at)
        elif kind == _FUNCTION:
            at = skip_string(data, at)
            if at <= len(data):
                self.functions += 1
        elif kind == _MODULE_AUX:
            name = module_name(data, at)
            at = skip_module(data, at)
            if at <= len(data):
                self.module_data.add(name)
        else:
            raise CorruptBackup(f"it has a record of the unknown kind {kind}")
        return None, at

    def _refuse(self, data: bytes, name_at: int, what: str) -> NoReturn:
        name, _ = read_string(data, name_at)
        raise CorruptBackup(f"key {shown_key(name)} in database {self._selected} {what}")

    def _check_end(self) -> None:
        self._crc = crc64(memoryview(self._buffer)[: self._at], self._crc)
        self._buffer, self._at = self._buffer[self._at :], 0
        computed = self._crc
        stored = self._take(lambda data, at: (int.from_bytes(data[at : at + 8], "little"), at + 8))
        # A server that is told not to compute it writes 0.
        if stored not in (0, computed):
            raise CorruptBackup("its checksum does not match")

    def _take(self, parse: _Parse[_T]) -> _T:
        """What `parse` finds, once there is enough to read."""
        while True:
            present = len(self._buffer) - self._at
            try:
                result, end = parse(self._buffer, self._at)
            except IndexError:
                needed = 2 * present
            else:
                if end <= len(self._buffer):
                    self._at = end
                    return result
                needed = end - self._at
            if present > _RECORD_LIMIT or needed > 2 * _RECORD_LIMIT:
                raise CorruptBackup(f"a record of it is larger than {STRING_LIMIT >> 20} MiB")
            self._fill(needed)

    def _fill(self, needed: int) -> None:
        self._crc = crc64(memoryview(self._buffer)[: self._at], self._crc)
        parts: list[bytes | memoryview] = [self._buffer[self._at :]]
        size = present = len(parts[0])
        while size < max(needed, _READ_BYTES):
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(bytes(piece))
            size += len(piece)
        if size == present:
            raise CorruptBackup("it ends in the middle")
        self._buffer, self._at = b"".join(parts), 0


def encode_key(name: bytes, expiry_ms: int | None, payload: bytes) -> Key:
    """A key as it stands in a file, from what DUMP gives. Raises CorruptBackup for what this version cannot carry."""
    shown = shown_key(name)
    try:
        kind, value = payload[0], payload[:-10]
        if kind == MODULE:
            owner = module_name(value, 1)
            raise CorruptBackup(f"key {shown} is of type {owner}, which only its module can carry")
        is_whole = skip_value(kind, value, 1) == len(value)
    except UnknownType as error:
        raise CorruptBackup(f"key {shown} is of {error}, which this version cannot carry") from None
    except IndexError:
        is_whole = False
    if not is_whole:
        raise CorruptBackup(f"the value of key {shown} is not what its type says")
    head = payload[:1] + _encode_string(name)
    return Key(expiry_ms, head + value[1:], len(head))


def write_rdb(version: int, server_version: str, database: int, keys: Iterator[Key]) -> Iterator[bytes]:
    """An RDB file with one logical database, in pieces of `PIECE_BYTES` at most.

    Nothing in it tells when it was made, so that the same keys make the same file.
    """
    crc = 0
    for piece in _cut(_parts(version, server_version, database, keys)):
        crc = crc64(piece, crc)
        yield piece
    yield crc.to_bytes(8, "little")


def shown_key(name: bytes) -> str:
    """A key's name as an error shows it."""
    text = harmless(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _parts(version: int, server_version: str, database: int, keys: Iterator[Key]) -> Iterator[bytes]:
    yield b"REDIS%04d" % version
    if server_version:
        yield bytes([_AUX]) + _encode_string(b"redis-ver") + _encode_string(server_version.encode())
    yield bytes([_SELECT]) + _encode_length(database)
    for key in keys:
        if key.expiry_ms is not None:
            yield bytes([_EXPIRY_MS]) + key.expiry_ms.to_bytes(8, "little", signed=True)
        yield key.raw
    yield bytes([_END])


def _cut(parts: Iterator[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            whole = memoryview(b"".join(waiting))
            waiting.clear()
            for start in range(0, size, PIECE_BYTES):
                piece = bytes(whole[start : start + PIECE_BYTES])
                if len(piece) == PIECE_BYTES:
                    yield piece
                else:
                    waiting.append(piece)
            size = sum(map(len, waiting))
    yield b"".join(waiting)


def _encode_string(data: bytes) -> bytes:
    return _encode_length(len(data)) + data


def _encode_length(length: int) -> bytes:
    if length < 1 << 6:
        return bytes([length])
    if length < 1 << 14:
        return (0x4000 | length).to_bytes(2, "big")
    if length < 1 << 32:
        return b"\x80" + length.to_bytes(4, "big")
    return b"\x81" + length.to_bytes(8, "big")
