"""The table of a pack: which blocks it has, and which chunks lie in them. In columns, here and in its bytes.

One line of JSON, then the columns that it counts, one after the other, little-endian, without padding:

    blocks: length u32 · raw u32 · codec u8 · base 52 bytes, only of those that are differences: the id of a chunk,
            and the pack that has it (run, number u32; zeros where the writer does not say)
    chunks: id 32 bytes · block u32 · offset u32 · length u32

Columns, because an index has millions of rows: they are read as they lie, and their size is known before memory is
taken for them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._ids import ID_LENGTH, Bytes
from holdfast.repository.dedup._names import object_name, parse_object_name
from holdfast.repository.dedup._seal import HEADER_LENGTH, TAG_LENGTH

PACK_MAGIC: Final = b"HFPACK01"
PACK_END: Final = b"HFPACKED"

MAX_RAW: Final = 4 << 20
"""Bytes of a block before compression."""
MAX_SEALED: Final = MAX_RAW + TAG_LENGTH
"""Bytes of a sealed block: what cannot be compressed is stored."""
MAX_BLOCKS: Final = 1 << 16
MAX_CHUNKS: Final = 1 << 18
MAX_PACK: Final = 1 << 30
"""Bytes of a pack."""
MAX_TABLE: Final = 32 << 20
"""Bytes of a table before compression."""

DIFFERENCE: Final = 3
CODECS: Final = 4
"""How many codecs version 1 has."""

BASE_LENGTH: Final = ID_LENGTH + 20

LINE_LIMIT: Final = 4096
_NO_PACK = bytes(20)
_HASH = re.compile(r"[0-9a-f]{64}")
_U32 = np.dtype("<u4")
_U8 = np.dtype("u1")

U32: TypeAlias = npt.NDArray[np.uint32]
U8: TypeAlias = npt.NDArray[np.uint8]


class BlockRow(NamedTuple):
    """Where a block lies in its pack, and what undoes its compression."""

    position: int
    """Its number in the pack, which it is sealed under."""
    offset: int
    length: int
    """Bytes, sealed."""
    raw: int
    """Bytes before compression."""
    codec: int
    base: bytes | None
    """The id of the chunk that it is a difference from."""
    base_pack: str = ""
    """Where that chunk was when this was written; empty where the writer does not say."""


class ChunkRow(NamedTuple):
    """Where a chunk lies in the raw bytes of its block."""

    id: bytes
    block: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class PackTable:
    """What a pack holds. Rows of chunks are in the order in which they lie there."""

    name: str
    size: int
    """Bytes of the pack."""
    hash: str
    """The digest in its trailer, hexadecimal: BLAKE3 of all before it."""
    block_lengths: U32
    block_raws: U32
    block_codecs: U8
    bases: U8
    """Rows of 52 bytes, one for each block that is a difference."""
    ids: U8
    """Rows of 32 bytes."""
    chunk_blocks: U32
    chunk_offsets: U32
    chunk_lengths: U32

    @property
    def block_count(self) -> int:
        return len(self.block_lengths)

    @property
    def chunk_count(self) -> int:
        return len(self.ids)

    def block_offsets(self) -> npt.NDArray[np.int64]:
        """Where each block begins in the pack, and behind them the end of the last."""
        offsets = np.full(self.block_count + 1, HEADER_LENGTH, np.int64)
        offsets[1:] += np.cumsum(self.block_lengths, dtype=np.int64)
        return offsets

    def blocks(self) -> list[BlockRow]:
        """All blocks, in order."""
        bases = iter(self.bases)
        return [
            make_block_row(position, offset, length, raw, codec, next(bases) if codec == DIFFERENCE else None)
            for position, (offset, length, raw, codec) in enumerate(
                zip(
                    self.block_offsets()[:-1].tolist(),
                    self.block_lengths.tolist(),
                    self.block_raws.tolist(),
                    self.block_codecs.tolist(),
                    strict=True,
                )
            )
        ]

    def chunks(self) -> list[ChunkRow]:
        """All chunks, in order."""
        return [
            ChunkRow(ids.tobytes(), block, offset, length)
            for ids, block, offset, length in zip(
                self.ids,
                self.chunk_blocks.tolist(),
                self.chunk_offsets.tolist(),
                self.chunk_lengths.tolist(),
                strict=True,
            )
        ]

    def encode(self, **more: str | int) -> bytes:
        """The bytes of the table; `more` goes into its first line."""
        columns = b"".join(
            column.tobytes()
            for column in (
                self.block_lengths.astype(_U32, copy=False),
                self.block_raws.astype(_U32, copy=False),
                self.block_codecs,
                self.bases,
                self.ids,
                self.chunk_blocks.astype(_U32, copy=False),
                self.chunk_offsets.astype(_U32, copy=False),
                self.chunk_lengths.astype(_U32, copy=False),
            )
        )
        line = {**more, "blocks": self.block_count, "chunks": self.chunk_count, "bytes": len(columns)}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n" + columns


class TableHead(NamedTuple):
    """The first line of a table."""

    pack: str
    """Empty in the pack itself, which cannot say the next two either."""
    size: int
    hash: str
    blocks: int
    chunks: int
    bytes: int
    """Of the columns after the line."""


def make_block_row(
    position: int, offset: int, length: int, raw: int, codec: int, base: U8 | None
) -> BlockRow:
    """A block's row; `base`: its row of 52 bytes, for a difference."""
    if base is None:
        return BlockRow(position, offset, length, raw, codec, None)
    data = base.tobytes()
    return BlockRow(position, offset, length, raw, codec, data[:ID_LENGTH], pack_name(data[ID_LENGTH:]))


def pack_base(name: bytes, pack: str) -> bytes:
    """The 52 bytes for a base; `pack`: empty where it is not said."""
    if not pack:
        return name + _NO_PACK
    run, number = parse_object_name(pack)
    return name + bytes.fromhex(run) + struct.pack("<I", number)


def base_packs(table: PackTable) -> list[bytes]:
    """The packs that a pack's differences have their bases in, each once: run and number, as in its rows."""
    return sorted({row[ID_LENGTH:].tobytes() for row in table.bases})


def pack_name(data: bytes) -> str:
    """The pack that 20 bytes of a base's row stand for; empty where it is not said."""
    if data == _NO_PACK:
        return ""
    run, number = struct.unpack("<16sI", data)
    return object_name(run.hex(), number)


def parse_head(line: bytes, what: str) -> TableHead:
    """Checks a table's first line. Raises CorruptBackup."""
    try:
        if len(line) > LINE_LIMIT:
            raise ValueError
        record = json.loads(line)
        if not isinstance(record, dict):
            raise TypeError
        head = TableHead(
            pack=record.get("pack", ""),
            size=_count(record["size"], MAX_PACK) if "pack" in record else 0,
            hash=record["hash"] if "pack" in record else "",
            blocks=_count(record["blocks"], MAX_BLOCKS),
            chunks=_count(record["chunks"], MAX_CHUNKS),
            bytes=_count(record["bytes"], MAX_TABLE),
        )
        if "pack" in record:
            parse_object_name(head.pack)
            if not _HASH.fullmatch(head.hash):
                raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CorruptBackup(f"{what} has a table that does not begin as one must") from None
    return head


def parse_columns(head: TableHead, data: Bytes, *, table_end: int | None) -> PackTable:
    """Checks the columns that a first line counts, and makes a table of them.

    `table_end`: where the last block must end in the pack, None where that is not known. Columns after those known
    here are passed over. Raises CorruptBackup.
    """
    pack = head.pack

    def refuse(why: str) -> CorruptBackup:
        return CorruptBackup(f"the table of pack {pack} {why}")

    offset = 0

    def column(dtype: np.dtype[Any], rows: int) -> npt.NDArray[Any]:
        nonlocal offset
        found = np.frombuffer(data, dtype, rows, offset)
        offset += rows * dtype.itemsize
        return found

    fixed = head.blocks * 9 + head.chunks * (ID_LENGTH + 12)
    if len(data) != head.bytes or len(data) < fixed:
        raise refuse("is shorter than it says")
    lengths, raws = column(_U32, head.blocks), column(_U32, head.blocks)
    codecs = column(_U8, head.blocks)
    if head.blocks and codecs.max() >= CODECS:
        raise CorruptBackup(
            f"pack {pack} has a block of codec {codecs.max()}, which is not known here",
            hint="Update Holdfast: `holdfast --version` shows yours.",
        )
    differences = int(np.count_nonzero(codecs == DIFFERENCE))
    if len(data) < fixed + differences * BASE_LENGTH:
        raise refuse("is shorter than it says")
    table = PackTable(
        name=pack,
        size=head.size,
        hash=head.hash,
        block_lengths=lengths,
        block_raws=raws,
        block_codecs=codecs,
        bases=column(_U8, differences * BASE_LENGTH).reshape(-1, BASE_LENGTH),
        ids=column(_U8, head.chunks * ID_LENGTH).reshape(-1, ID_LENGTH),
        chunk_blocks=column(_U32, head.chunks),
        chunk_offsets=column(_U32, head.chunks),
        chunk_lengths=column(_U32, head.chunks),
    )
    _check(table, refuse, table_end)
    return table


def _check(table: PackTable, refuse: Callable[[str], CorruptBackup], table_end: int | None) -> None:
    """What must be true of every table before any of it is believed."""
    lengths, raws = table.block_lengths, table.block_raws
    if table.block_count:
        if raws.min() < 1 or raws.max() > MAX_RAW:
            raise refuse(f"has a block of no bytes, or of more than {MAX_RAW}")
        if lengths.min() <= TAG_LENGTH or lengths.max() > MAX_SEALED:
            raise refuse(f"has a sealed block of no bytes, or of more than {MAX_SEALED}")
    end = HEADER_LENGTH + int(lengths.sum(dtype=np.int64))
    if end > table.size or (table_end is not None and end != table_end):
        raise refuse("has blocks that are not as long as its pack")
    blocks = table.chunk_blocks.astype(np.int64)
    starts = table.chunk_offsets.astype(np.int64)
    sizes = table.chunk_lengths.astype(np.int64)
    if table.chunk_count:
        if blocks.max() >= table.block_count:
            raise refuse("has a chunk in a block that is not there")
        if sizes.min() < 1 or (starts + sizes > raws[blocks]).any():
            raise refuse("has a chunk of no bytes, or beyond the end of its block")
        # Blocks are of 4 MiB at most, so one number can stand for a place in all of them.
        places = (blocks << 32) + starts
        if (places[1:] < places[:-1] + sizes[:-1]).any():
            raise refuse("has chunks that overlap, or are out of order")
    alone = np.flatnonzero(table.block_codecs == DIFFERENCE)
    if len(alone):
        whole = blocks[(starts == 0) & (sizes == raws[blocks])]
        if not np.isin(alone, whole).all():
            raise refuse("has a difference that is not one whole chunk")


def _count(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError
    return value


def parse_table(packed: bytes, *, pack: str, size: int, digest: str, table_end: int) -> PackTable:
    """Makes a table of what a pack has of it: one zstd frame. The rest is what is seen from outside.

    Raises CorruptBackup.
    """
    what = f"pack {pack}"
    data = inflate(packed, limit=MAX_TABLE)
    if data is None:
        raise CorruptBackup(f"{what} has a table that does not decompress")
    line, newline, _ = data[: LINE_LIMIT + 1].partition(b"\n")
    if not newline:
        raise CorruptBackup(f"{what} has a table that does not begin as one must")
    columns = memoryview(data)[len(line) + 1 :]
    head = parse_head(line, what)._replace(pack=pack, size=size, hash=digest)
    return parse_columns(head, columns, table_end=table_end)


def inflate(data: bytes, *, limit: int) -> bytes | None:
    """One zstd frame, of at most `limit` bytes raw; None when it is damaged or larger."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            found = reader.read(limit + 1)
    except zstandard.ZstdError:
        return None
    return found if len(found) <= limit else None
