"""What the tests of sealed objects share: keys, packs with every kind of block, bytes that can be broken."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import zstandard
from blake3 import blake3

from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import pack_path
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._pack_writer import PackWriter
from holdfast.repository.dedup._seal import TABLE, TABLE_POSITION, Sealer
from holdfast.repository.dedup._table import DIFFERENCE, PACK_END, PACK_MAGIC, PackTable
from holdfast.storage.local import LocalStorage

STARTED = datetime(2026, 11, 23, 2, 0, 0, tzinfo=UTC)
REPOSITORY = "0123456789abcdef" * 2


def make_keys(*, like: RunKeys | None = None, writer: str = "d3JpdGVy") -> RunKeys:
    """Those of a new run; `like`: in the same repository, with the same id key."""
    return RunKeys.generate(
        repository=like.repository if like else REPOSITORY,
        id_key=like.id_key if like else secrets.token_bytes(32),
        writer=like.writer if like else writer,
        clock=lambda: STARTED,
    )


class Bytes:
    """Bytes in memory, as something to read at random."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def weights(count: int, seed: int = 0) -> bytes:
    """So many numbers as a trained network has them, in bfloat16."""
    values = (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def nudged(raw: bytes) -> bytes:
    """The same after a little more training."""
    values = np.frombuffer(raw, "<u2")
    return (values + (np.arange(len(values)) % 3 == 0)).astype("<u2").tobytes()


def no_base(name: bytes) -> bytes:
    raise AssertionError(f"no difference was expected, and a base was asked for: {name.hex()}")


@contextmanager
def pool(threads: int = 2) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(threads) as executor:
        yield executor


Block = tuple[Sequence[bytes], int, bytes | None]
"""Contents, item size, and the content of a base."""


def write_pack(storage: LocalStorage, keys: RunKeys, number: int, blocks: Sequence[Block]) -> PackTable:
    def named(data: bytes) -> tuple[bytes, bytes]:
        return chunk_id(keys.id_key, data), data

    with pool() as executor, PackWriter(storage, keys, number, executor) as writer:
        for contents, item_size, base in blocks:
            chunks = [named(data) for data in contents]
            writer.add_block(chunks, item_size, None if base is None else named(base))
        return writer.finish()


def every_kind() -> tuple[list[Block], dict[str, bytes]]:
    """A small pack with a block of each codec."""
    base = weights(250, 1)
    contents = {
        "stored": os.urandom(60),
        "rows": b"".join(b"row %d: nothing new\n" % row for row in range(20)),
        "more rows": b"another\n" * 40,
        "weights": weights(250, 2),
        "base": base,
        "version": nudged(base),
    }
    return [
        ([contents["stored"]], 1, None),
        ([contents["rows"], contents["more rows"]], 1, None),
        ([contents["weights"]], 2, None),
        ([contents["version"]], 2, contents["base"]),
    ], contents


def pack_bytes(directory: Path, table: PackTable) -> bytes:
    return (directory / pack_path(table.name)).read_bytes()


def forge_pack(keys: RunKeys, number: int, blocks: bytes, table: bytes) -> bytes:
    """A pack as somebody makes it who has the keys and does not mean well: sealed as it must be, around any table."""
    sealer = Sealer(keys, PACK_MAGIC, number)
    sealed = sealer.seal(TABLE, TABLE_POSITION, zstandard.compress(table))
    body = sealer.header + blocks + sealed + len(sealed).to_bytes(4, "little")
    return body + blake3(body).digest() + PACK_END


def flipped(data: bytes, bit: int) -> bytes:
    """With one bit the other way."""
    broken = bytearray(data)
    broken[bit // 8] ^= 1 << bit % 8
    return bytes(broken)


def contents(reader: PackReader, resolve: Callable[[bytes], bytes] = no_base) -> list[bytes]:
    return [
        reader.block(chunk.block, resolve)[chunk.offset : chunk.offset + chunk.length]
        for chunk in reader.table.chunks()
    ]


def head(blocks: int, chunks: int, size: int) -> bytes:
    """The first line of a table."""
    return json.dumps({"blocks": blocks, "chunks": chunks, "bytes": size}).encode() + b"\n"


def columns(
    blocks: Sequence[tuple[int, int, int]], chunks: Sequence[tuple[int, int, int]], bases: int | None = None
) -> bytes:
    differences = sum(codec == DIFFERENCE for _, _, codec in blocks) if bases is None else bases
    return b"".join(
        [
            np.array([length for length, _, _ in blocks], "<u4").tobytes(),
            np.array([raw for _, raw, _ in blocks], "<u4").tobytes(),
            bytes(codec for _, _, codec in blocks),
            (b"\xbb" * 51 + b"\0") * differences,
            b"".join(row.to_bytes(32, "big") for row in range(len(chunks))),
            np.array(chunks, "<u4").reshape(-1, 3).T.tobytes(),
        ]
    )
