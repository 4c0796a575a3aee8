"""Where a value in an RDB file ends.

A value is carried as the server wrote it, so all that must be known of it is its length. Types and encodings up to
RDB version 12 (Redis 7.4 and 8.0) are known: https://github.com/redis/redis/blob/7.4/src/rdb.h, ``rdb.c``.

What is skipped is a buffer of bytes that may end too early. Then an IndexError comes out, or a position behind its
end: the caller comes back with a longer one. Nothing is allocated by a length that was read, and no loop goes on
beyond the buffer.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import CorruptBackup

STRING_LIMIT = 512 << 20
"""Bytes. Redis's own limit for a string, and by default for what RESTORE takes."""

MODULE = 7
_LZF = 3
_INTEGER_BYTES = {0: 1, 1: 2, 2: 4}
_MODULE_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class UnknownType(Exception):
    """A type of value that is not known here. The message names it."""


def read_length(data: bytes, at: int) -> tuple[int, int]:
    """A length, and where it ends. Raises CorruptBackup for what is none, IndexError."""
    first = data[at]
    if first < 0x40:
        return first, at + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | data[at + 1], at + 2
    size = {0x80: 4, 0x81: 8}.get(first)
    if size is None:
        raise CorruptBackup(f"a length begins with {first:#04x}")
    end = at + 1 + size
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at + 1 : end], "big"), end


def skip_string(data: bytes, at: int) -> int:
    """Where the string at `at` ends, however it is encoded."""
    first = data[at]
    if first < 0x40:
        return at + 1 + first
    if first < 0xC0:
        length, at = read_length(data, at)
        return at + length
    encoding = first & 0x3F
    if encoding in _INTEGER_BYTES:
        return at + 1 + _INTEGER_BYTES[encoding]
    if encoding != _LZF:
        raise CorruptBackup(f"a string has the unknown encoding {encoding}")
    compressed, at = read_length(data, at + 1)
    length, at = read_length(data, at)
    if length > STRING_LIMIT:
        raise CorruptBackup(f"a string claims to be {length} bytes long")
    return at + compressed


def read_string(data: bytes, at: int) -> tuple[bytes, int]:
    """The string at `at`, decoded, and where it ends."""
    end = skip_string(data, at)
    if end > len(data):
        raise IndexError
    first = data[at]
    if first < 0xC0:
        _, at = read_length(data, at)
        return data[at:end], end
    if first & 0x3F != _LZF:
        return str(int.from_bytes(data[at + 1 : end], "little", signed=True)).encode(), end
    _, at = read_length(data, at + 1)
    length, at = read_length(data, at)
    return _decompress(data[at:end], length), end


def skip_value(kind: int, data: bytes, at: int) -> int:
    """Where the value of this type ends. Raises UnknownType, CorruptBackup, IndexError."""
    skip = _SKIP.get(kind)
    if skip is None:
        raise UnknownType(f"type {kind}")
    return skip(data, at)


def module_name(data: bytes, at: int) -> str:
    """The module that a value belongs to. Its 64 bits are nine characters and ten bits of a version."""
    number, _ = read_length(data, at)
    return "".join(_MODULE_LETTERS[number >> shift & 0x3F] for shift in range(58, 9, -6))


def skip_module(data: bytes, at: int) -> int:
    """Where a module's value ends, or what it keeps beside all keys. It says of each part what that is."""
    _, at = read_length(data, at)
    while True:
        part, at = read_length(data, at)
        match part:
            case 0:
                return at
            case 1 | 2:  # integers
                _, at = read_length(data, at)
            case 3:  # a float
                at += 4
            case 4:  # a double
                at += 8
            case 5:  # a string
                at = skip_string(data, at)
            case _:
                raise CorruptBackup(f"a module's data has the unknown part {part}")


def _skip_strings(data: bytes, at: int, count: int) -> int:
    for _ in range(count):
        first = data[at]
        if first < 0x40:
            at += 1 + first
        elif first < 0x80:
            at += 2 + ((first & 0x3F) << 8 | data[at + 1])
        else:
            at = skip_string(data, at)
    return at


def _strings(data: bytes, at: int) -> int:
    count, at = read_length(data, at)
    return _skip_strings(data, at, count)


def _pairs(data: bytes, at: int) -> int:
    count, at = read_length(data, at)
    return _skip_strings(data, at, 2 * count)


def _old_scores(data: bytes, at: int) -> int:
    count, at = read_length(data, at)
    for _ in range(count):
        at = skip_string(data, at)
        length = data[at]
        at += 1 + (length if length < 253 else 0)
    return at


def _scores(data: bytes, at: int) -> int:
    count, at = read_length(data, at)
    for _ in range(count):
        at = skip_string(data, at) + 8
    return at


def _nodes(data: bytes, at: int) -> int:
    count, at = read_length(data, at)
    for _ in range(count):
        container, at = read_length(data, at)
        if container not in (1, 2):
            raise CorruptBackup(f"a list has a node of the unknown kind {container}")
        at = skip_string(data, at)
    return at


def _expiring_fields(data: bytes, at: int) -> int:
    count, at = read_length(data, at + 8)
    for _ in range(count):
        _, at = read_length(data, at)
        at = _skip_strings(data, at, 2)
    return at


def _expiring_listpack(data: bytes, at: int) -> int:
    return skip_string(data, at + 8)


def _skip_lengths(data: bytes, at: int, count: int) -> int:
    for _ in range(count):
        _, at = read_length(data, at)
    return at


def _stream(data: bytes, at: int, version: int) -> int:
    at = _pairs(data, at)
    # Entries and the last id; since version 2 the first id, the greatest deleted one, and all that were ever added.
    at = _skip_lengths(data, at, 3 if version == 1 else 8)
    groups, at = read_length(data, at)
    for _ in range(groups):
        at = skip_string(data, at)
        at = _skip_lengths(data, at, 2 if version == 1 else 3)
        pending, at = read_length(data, at)
        for _ in range(pending):
            _, at = read_length(data, at + 16 + 8)
        consumers, at = read_length(data, at)
        for _ in range(consumers):
            at = skip_string(data, at) + (8 if version < 3 else 16)
            owned, at = read_length(data, at)
            at += 16 * owned
            if at > len(data):
                raise IndexError
    return at


_SKIP: dict[int, Callable[[bytes, int], int]] = {
    0: skip_string,
    1: _strings,  # list
    2: _strings,  # set
    3: _old_scores,  # sorted set, scores as text
    4: _pairs,  # hash
    5: _scores,  # sorted set
    MODULE: skip_module,
    9: skip_string,  # hash as a zipmap
    10: skip_string,  # list as a ziplist
    11: skip_string,  # set of integers
    12: skip_string,  # sorted set as a ziplist
    13: skip_string,  # hash as a ziplist
    14: _strings,  # list of ziplists
    15: lambda data, at: _stream(data, at, 1),
    16: skip_string,  # hash as a listpack
    17: skip_string,  # sorted set as a listpack
    18: _nodes,  # list of listpacks and long strings
    19: lambda data, at: _stream(data, at, 2),
    20: skip_string,  # set as a listpack
    21: lambda data, at: _stream(data, at, 3),
    24: _expiring_fields,  # hash whose fields expire
    25: _expiring_listpack,  # the same as a listpack
}


def _decompress(data: bytes, length: int) -> bytes:
    """LZF (http://oldhome.schmorp.de/marc/liblzf.html). Raises CorruptBackup unless it gives `length` bytes."""
    made = bytearray()
    at = 0
    try:
        while at < len(data):
            control = data[at]
            at += 1
            if control < 32:
                made += data[at : at + control + 1]
                at += control + 1
            else:
                copied = control >> 5
                if copied == 7:
                    copied += data[at]
                    at += 1
                start = len(made) - ((control & 0x1F) << 8 | data[at]) - 1
                at += 1
                copied += 2
                if start < 0:
                    raise CorruptBackup("a compressed string refers to what is before it")
                pattern = made[start : start + copied]
                made += (pattern * (copied // len(pattern) + 1))[:copied]
            if len(made) > length:
                break
    except IndexError:
        raise CorruptBackup("a compressed string is cut off") from None
    if len(made) != length or at != len(data):
        raise CorruptBackup("a compressed string has another length than it says")
    return bytes(made)
