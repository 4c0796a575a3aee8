"""Writes packs: blocks are compressed, tried and sealed by a pool of threads, and uploaded in order by one more."""

from __future__ import annotations

import os
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

import numpy as np
import zstandard
from blake3 import blake3

from holdfast.errors import RepositoryError
from holdfast.repository.dedup._codec import decode, encode
from holdfast.repository.dedup._ids import ID_LENGTH, Bytes
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import object_name, pack_path
from holdfast.repository.dedup._seal import BLOCK, TABLE, TABLE_POSITION, Sealer
from holdfast.repository.dedup._table import (
    BASE_LENGTH,
    DIFFERENCE,
    MAX_BLOCKS,
    MAX_CHUNKS,
    MAX_RAW,
    PACK_END,
    PACK_MAGIC,
    U8,
    U32,
    PackTable,
    pack_base,
    parse_table,
)
from holdfast.storage.base import Storage

PACK_SIZE: Final = 64 << 20
"""Bytes at which a pack is full: enough that a storage has few objects, little enough to write again in `gc`."""

PACK_CHUNKS: Final = 1 << 16
"""Chunks at which it is full too: its table is held in memory, a few times over."""

BLOCK_SIZE: Final = 1 << 20
"""Raw bytes of a block that is made of several chunks."""
BLOCK_CHUNKS: Final = 4096

BUILDERS: Final = 8
"""A full pack has room for a block from each of so many builders."""

_TABLE_LEVEL = 3

Chunk: TypeAlias = tuple[bytes, Bytes]
"""An id and the content."""


class _Sealed(NamedTuple):
    data: bytes
    raw: int
    codec: int
    base: bytes


class PackWriter:
    """One pack being written. Nobody sees it before `finish`.

    Chunks are not copied before a thread of `pool` comes to them: their memory must stay as it is until the pack is
    finished. At most `pending` blocks are in memory. An error of a block or of the storage is raised by a later call,
    by `finish` at the latest. Leaving the context without `finish` aborts. For one calling thread.
    """

    def __init__(
        self, storage: Storage, keys: RunKeys, number: int, pool: Executor, *, pending: int | None = None
    ) -> None:
        """`number`: one that this run has given to no pack, also not to one that was aborted: see `_seal`.

        Raises StorageError when the storage refuses.
        """
        self.name = object_name(keys.run, number)
        self.size = 0
        """Bytes written so far; blocks that are still being compressed are not among them."""
        self._sealer = Sealer(keys, PACK_MAGIC, number)
        self._pool = pool
        self._limit = pending or 2 * (os.cpu_count() or 1) + 2
        self._pending: deque[tuple[Future[_Sealed], Future[None]]] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._hash = blake3()
        self._block_count = 0
        self._block_lengths = array("I")
        self._block_raws = array("I")
        self._block_codecs = bytearray()
        self._bases = bytearray()
        self._ids = bytearray()
        self._chunk_blocks = array("I")
        self._chunk_offsets = array("I")
        self._chunk_lengths = array("I")
        self._upload = storage.create(pack_path(self.name), hashed=False)
        try:
            self._write(self._sealer.header)
        except BaseException:
            self._upload.abort()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pack-write")

    @property
    def is_full(self) -> bool:
        """Whether what comes next belongs into another pack. What has been collected for this one still fits."""
        return (
            self.size >= PACK_SIZE
            or self._block_count >= MAX_BLOCKS - BUILDERS
            or len(self._chunk_lengths) >= PACK_CHUNKS
        )

    def add_block(
        self, chunks: Sequence[Chunk], item_size: int = 1, base: Chunk | None = None, *, base_pack: str = ""
    ) -> None:
        """Stores chunks of one kind of content, together; one that has a `base`, alone. Waits while too many blocks
        are in memory.

        `item_size`: that of the tensor, 1 where there is none. `base`: what to try a difference from; as long as the
        chunk. `base_pack`: where readers find it at once; they must search for it otherwise.

        Raises RepositoryError when a block does not decompress to what it was made from, StorageError, and ValueError
        for more than a block or a pack can hold.
        """
        self._check()
        sizes = [len(data) for _, data in chunks]
        if not sizes or not min(sizes) or sum(sizes) > MAX_RAW or (base is not None and len(chunks) != 1):
            raise ValueError(f"{len(sizes)} chunks of {sum(sizes)} bytes cannot be one block")
        if self._block_count >= MAX_BLOCKS or len(self._chunk_lengths) + len(chunks) > MAX_CHUNKS:
            raise ValueError(f"pack {self.name} cannot hold more")
        if any(len(name) != ID_LENGTH for name, _ in (*chunks, *((base,) if base else ()))):
            raise ValueError(f"an id has {ID_LENGTH} bytes")
        while len(self._pending) >= self._limit:
            self._pending.popleft()[1].result()
        position = self._block_count
        self._block_count += 1
        offset = 0
        for (name, _), size in zip(chunks, sizes, strict=True):
            self._ids += name
            self._chunk_blocks.append(position)
            self._chunk_offsets.append(offset)
            self._chunk_lengths.append(size)
            offset += size
        sealing = self._pool.submit(_seal_block, self._sealer, position, chunks, item_size, base, base_pack)
        self._pending.append((sealing, self._writer.submit(self._release, sealing)))

    def finish(self) -> PackTable:
        """Writes the table, and makes the pack durable and visible. Raises what `add_block` raises."""
        return self.finishing().result()

    def finishing(self) -> Future[PackTable]:
        """As `finish`, but waits for nothing: the next pack can be begun meanwhile."""
        self._check()
        if not self._block_count:
            raise ValueError("a pack without blocks cannot be finished")
        self._closed = True
        finished = self._writer.submit(self._finish)
        self._writer.shutdown(wait=False)
        return finished

    def abort(self) -> None:
        """Forgets what was written, and ends the writing thread. Does nothing after `finish`."""
        if self._closed:
            return
        self._closed = True
        for sealing, _ in self._pending:
            sealing.cancel()
        self._writer.shutdown(cancel_futures=True)
        self._upload.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _check(self) -> None:
        # An abort cancels blocks, which then fail, sooner or later: that is not what a caller did wrong.
        if self._closed:
            raise ValueError(f"pack {self.name} is finished, or aborted")
        if self._failure is not None:
            raise self._failure

    def _release(self, sealing: Future[_Sealed]) -> None:
        """Writes one block, in the writing thread. After an error nothing more is written."""
        if self._failure is not None:
            return
        try:
            block = sealing.result()
            self._write(block.data)
            self._block_lengths.append(len(block.data))
            self._block_raws.append(block.raw)
            self._block_codecs.append(block.codec)
            self._bases += block.base
        except BaseException as error:
            self._failure = error
            raise

    def _finish(self) -> PackTable:
        """In the writing thread, after all blocks."""
        try:
            if self._failure is not None:
                raise self._failure
            table = PackTable(
                name=self.name,
                size=self.size,
                hash="",
                block_lengths=_u32(self._block_lengths),
                block_raws=_u32(self._block_raws),
                block_codecs=np.frombuffer(bytes(self._block_codecs), np.uint8),
                bases=_rows(self._bases, BASE_LENGTH),
                ids=_rows(self._ids, ID_LENGTH),
                chunk_blocks=_u32(self._chunk_blocks),
                chunk_offsets=_u32(self._chunk_offsets),
                chunk_lengths=_u32(self._chunk_lengths),
            )
            packed = zstandard.ZstdCompressor(_TABLE_LEVEL).compress(table.encode())
            # As with blocks: what could not be read back must not be called stored.
            parse_table(packed, pack=self.name, size=self.size, digest="", table_end=self.size)
            sealed = self._sealer.seal(TABLE, TABLE_POSITION, packed)
            self._write(sealed + struct.pack("<I", len(sealed)))
            digest = self._hash.digest()
            self._write(digest + PACK_END)
            self._upload.publish()
            return replace(table, size=self.size, hash=digest.hex())
        finally:
            self._upload.abort()

    def _write(self, data: bytes) -> None:
        self._upload.write(data)
        self._hash.update(data)
        self.size += len(data)


class BlockBuilder:
    """Collects chunks of one kind of content into blocks of about 1 MiB."""

    def __init__(self, item_size: int = 1) -> None:
        self.item_size = item_size
        self.size = 0
        """Bytes collected."""
        self._chunks: list[Chunk] = []

    def add(self, name: bytes, data: Bytes) -> list[Chunk]:
        """Takes a chunk. Returns the block that is full by it, or has no room for it; else nothing."""
        full = self.take() if self.size + len(data) > BLOCK_SIZE else []
        self._chunks.append((name, data))
        self.size += len(data)
        if not full and (self.size >= BLOCK_SIZE or len(self._chunks) >= BLOCK_CHUNKS):
            full = self.take()
        return full

    def take(self) -> list[Chunk]:
        """What has been collected; nothing is left."""
        chunks, self._chunks, self.size = self._chunks, [], 0
        return chunks


def _seal_block(
    sealer: Sealer, position: int, chunks: Sequence[Chunk], item_size: int, base: Chunk | None, base_pack: str
) -> _Sealed:
    raw = memoryview(chunks[0][1] if len(chunks) == 1 else b"".join([data for _, data in chunks]))
    base_view = None if base is None else memoryview(base[1]).cast("B")
    codec, encoded = encode(raw, item_size, base_view)
    opened = decode(codec, encoded, len(raw), base_view if codec == DIFFERENCE else None)
    if not _same(memoryview(opened), raw):
        raise RepositoryError(
            f"a block of {len(raw)} bytes did not decompress to what it was made from",
            hint="The memory or the processor of this machine is faulty: test both, then back up again.",
        )
    sealed = sealer.seal(BLOCK, position, encoded)
    used = b"" if base is None or codec != DIFFERENCE else pack_base(base[0], base_pack)
    return _Sealed(sealed, len(raw), codec, used)


def _same(one: memoryview, other: memoryview) -> bool:
    """Whether both hold the same bytes. Word by word: memoryview compares item by item, with the GIL held."""
    words = len(one) // 8
    return (
        len(one) == len(other)
        and np.array_equal(np.frombuffer(one, np.uint64, words), np.frombuffer(other, np.uint64, words))
        and bytes(one[words * 8 :]) == bytes(other[words * 8 :])
    )


def _u32(values: array[int]) -> U32:
    return np.array(values, np.uint32)


def _rows(data: bytearray, width: int) -> U8:
    return np.frombuffer(bytes(data), np.uint8).reshape(-1, width)
