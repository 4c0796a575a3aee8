"""The CRC-64 that ends RDB files and DUMP payloads.

Polynomial 0xad93d23594c935a9 (Jones), reflected, initial value 0, no final inversion; the check value of
``123456789`` is 0xe9c6d914c4b8d9ca (https://github.com/redis/redis/blob/7.0/src/crc64.c).

A table takes one byte at a time, some 10 MB/s. Long data is first made short by arithmetic on integers of its
own size, at some 100 MB/s: modulo the polynomial P, x^7004 is a sum of only 17 powers below x^64, and since squaring
is linear over GF(2), x^(7004·s) is the sum of the same powers of x^s, for every s = 2^k. So the leading bits are
dropped, and added again at 17 lower places.
"""

from __future__ import annotations

from itertools import pairwise

_POLYNOMIAL = 0xAD93D23594C935A9
_DEGREE = 7004
"""The one below 8000 whose remainder has the fewest terms."""
_LONG_BYTES = 1500
"""From here on folding is the faster way."""
_BLOCK_BYTES = 128 * 1024
"""Folded at once: it stays in the processor's cache."""


def crc64(data: bytes | memoryview, crc: int = 0) -> int:
    """The checksum of `data`, after what `crc` is the checksum of."""
    view = memoryview(data)
    start = 0
    while len(view) - start >= _LONG_BYTES:
        block = view[start : start + _BLOCK_BYTES]
        crc = _by_table(_fold(block, crc), 0)
        start += len(block)
    return _by_table(view[start:], crc)


def _by_table(data: bytes | memoryview, crc: int) -> int:
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def _fold(data: memoryview, crc: int) -> bytes:
    """Shorter data, of which the table, beginning with 0, makes what it makes of `data`, beginning with `crc`."""
    # The first byte's lowest bit is the coefficient of the highest power.
    number = int.from_bytes(data, "little") ^ crc
    bits = 8 * len(data)
    scale = (bits // _DEGREE).bit_length()
    while scale >= 0:
        kept = _DEGREE << scale
        while bits > kept:
            dropped = min(bits - kept, _GAP << scale)
            leading = number & ((1 << dropped) - 1)
            number >>= dropped
            bits -= dropped
            folded = 0
            for step in _STEPS:
                folded = (folded << (step << scale)) ^ leading
            number ^= folded << ((_GAP << scale) - dropped)
        scale -= 1
    # Whole bytes again: zeros before the highest power change nothing.
    padding = -bits % 8
    return (number << padding).to_bytes((bits + padding) // 8, "little")


def _make_table() -> tuple[int, ...]:
    reflected = int(f"{_POLYNOMIAL:064b}"[::-1], 2)
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (reflected if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _powers(degree: int) -> list[int]:
    """The powers of x that x^degree is the sum of, modulo the polynomial, ascending."""
    remainder = 1
    for _ in range(degree):
        remainder <<= 1
        if remainder >> 64:
            remainder = remainder & ((1 << 64) - 1) ^ _POLYNOMIAL
    return [power for power in range(64) if remainder >> power & 1]


_TABLE = _make_table()
_POWERS = _powers(_DEGREE)
_GAP = _DEGREE - _POWERS[-1]
"""So many powers can be dropped at once."""
# The lowest power is the farthest from the dropped bits; by Horner's rule the first term is shifted by all steps.
_STEPS = [0, *(high - low for low, high in pairwise(_POWERS))]
