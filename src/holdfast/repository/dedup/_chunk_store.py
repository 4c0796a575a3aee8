"""Stores chunks: finds those that are there already, gathers the others into blocks, and the blocks into packs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from holdfast.errors import RepositoryError, SizeLimitExceeded, StorageError
from holdfast.repository._manifest import PACKS_LIMIT, ChunkRef, PackRef
from holdfast.repository.dedup._chunk import MAX_CHUNK, Chunk
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._memories import Memories
from holdfast.repository.dedup._pack_writer import BlockBuilder, PackWriter
from holdfast.repository.dedup._pack_writer import Chunk as StoredChunk
from holdfast.repository.dedup._table import DIFFERENCE, PackTable
from holdfast.repository.dedup._tensor_bases import TensorBases, tensor_identity
from holdfast.storage.base import Storage

_INLINE = 128 << 10
"""Bytes of a file that are named at once: to hand them over would take longer."""
_AHEAD = 8
"""Groups of chunks that are named before they are asked for: enough for the threads that seal not to wait."""
_FEW = 8
"""Chunks that are looked up one by one in less time than together."""

ReadBase = Callable[[bytes], "bytes | None"]
"""The content of a chunk that is stored, by its id; None where this host has no way to it."""


class _Pack:
    """A pack being written, and what is to be remembered of it."""

    def __init__(self, writer: PackWriter, number: int) -> None:
        self.writer = writer
        self.number = number
        """In the manifest's list."""
        self.blocks = 0
        self.tensors: list[tuple[int, bytes, bytes]] = []
        """Block, tensor identity, chunk id."""


class _Base(NamedTuple):
    """A chunk that a difference is taken from."""

    id: bytes
    pack: str
    data: bytes


class ChunkStore:
    """The chunks of one run. For one thread."""

    def __init__(
        self,
        storage: Storage,
        keys: RunKeys,
        known: Memories,
        bases: TensorBases,
        read_base: ReadBase,
        *,
        index: IndexWriter,
        key_file: str,
        packs: list[PackRef],
        max_bytes: int | None,
    ) -> None:
        """`index` takes the tables of packs. `key_file`: the SHA-256 of the run's. `packs`: those of the backup that
        this run compares with, whose numbers stay. `known` must hold nothing that is not there any more."""
        self.index = index
        self.finished: list[str] = []
        """The packs that this run has made durable."""
        self._storage = storage
        self._keys = keys
        self._key_file = key_file
        self._known = known
        self._bases = bases
        self._read_base = read_base
        self._max_bytes = max_bytes
        self._packs = list(packs)
        self._numbers = {pack.name: number for number, pack in enumerate(packs)}
        self._used: set[int] = set()
        self._pack_bytes = 0
        self._new: dict[bytes, int] = {}
        """Chunks of this run's packs, and the number of the pack; of those packs that `known` has not yet."""
        self._builders: dict[int, BlockBuilder] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="seal")
        self._pack: _Pack | None = None
        self._count = 0
        self._finishing: tuple[_Pack, Future[PackTable]] | None = None

    def put(self, groups: Iterable[list[Chunk]]) -> Iterator[ChunkRef]:
        """Stores those that are not there yet, and tells where each is, in order.

        Raises StorageError, RepositoryError, SizeLimitExceeded.
        """
        naming: deque[tuple[list[Chunk], Future[list[bytes]]]] = deque()
        for group in groups:
            if not naming and sum(len(chunk.data) for chunk in group) <= _INLINE:
                yield from self._place(group, self._names(group))
                continue
            naming.append((group, self._pool.submit(self._names, group)))
            if len(naming) > _AHEAD:
                first, names = naming.popleft()
                yield from self._place(first, names.result())
        while naming:
            first, names = naming.popleft()
            yield from self._place(first, names.result())

    def put_one(self, data: bytes) -> ChunkRef:
        """As `put`, for a chunk of no tensor."""
        name = chunk_id(self._keys.id_key, data)
        number = self._new.get(name)
        if number is None:
            known = self._known.get(name)
            number = self._number(known.pack) if known is not None else self._store(name, Chunk(data))
        self._used.add(number)
        return ChunkRef(len(data), name.hex(), number)

    def _names(self, chunks: Sequence[Chunk]) -> list[bytes]:
        return [chunk_id(self._keys.id_key, chunk.data) for chunk in chunks]

    def _place(self, chunks: Sequence[Chunk], names: Sequence[bytes]) -> Iterator[ChunkRef]:
        finished = len(self.finished)
        found = self._known.find_many(names) if len(names) > _FEW else [*map(self._known.get, names)]
        for chunk, name, known in zip(chunks, names, found, strict=True):
            number = self._new.get(name)
            if number is None:
                if known is None and len(self.finished) != finished:
                    known = self._known.get(name)  # Its pack was finished since they were looked up.
                number = self._number(known.pack) if known is not None else self._store(name, chunk)
            self._used.add(number)
            yield ChunkRef(len(chunk.data), name.hex(), number)

    def use(self, pack: int) -> None:
        """A chunk is kept as the other backup has it: its pack, by its number, is needed on."""
        self._used.add(pack)

    def finish(self) -> list[PackRef]:
        """Makes everything durable. Returns the packs that are needed, in the order of their numbers."""
        self._flush()
        self._settle()
        self.index.flush()
        self.check_size(0)
        self._bases.save()
        self._pool.shutdown()
        self._use_bases()
        if len(self._packs) > PACKS_LIMIT:
            raise RepositoryError(f"the backup would need {len(self._packs)} packs, more than one may list")
        sizes, hashes = self._known.packs(), self._known.hashes()
        return [
            PackRef(pack.name, sizes[pack.name], hashes[pack.name])
            if number in self._used
            else PackRef(pack.name, 0, "")
            for number, pack in enumerate(self._packs)
        ]

    @property
    def stored_bytes(self) -> int:
        """Bytes of finished packs, and of index objects."""
        return self._pack_bytes + self.index.size

    def check_size(self, more: int) -> None:
        """Raises SizeLimitExceeded when the run would add more than it may, with so many bytes more."""
        if self._max_bytes is not None and self.stored_bytes + more > self._max_bytes:
            raise SizeLimitExceeded(f"the backup would add more than {self._max_bytes / 1e9:g} GB")

    def abort(self) -> None:
        """Gives up the pack that is not finished."""
        if self._pack is not None:
            self._pack.writer.abort()
        # One that was ended has all that it needs: the next run finds it.
        if self._finishing is not None and self._finishing[1].exception() is None:
            with suppress(StorageError):  # It is stored once more then.
                self._settle()
        self._pool.shutdown(cancel_futures=True)

    def _use_bases(self) -> None:
        """A pack is needed as well if chunks in it are what others that are needed are differences from: also from
        those that were there before, and from kept ones. It needs no other in turn: no base is a difference."""
        bases = self._known.bases()
        for number in list(self._used):
            for base in bases.get(self._packs[number].name, ()):
                self._used.add(self._number(base))

    def _store(self, name: bytes, chunk: Chunk) -> int:
        pack = self._current()
        data = chunk.data
        if len(data) < MAX_CHUNK:
            data = bytes(data)  # A part would keep all that was read with it, until its block is full.
        self._new[name] = pack.number
        identity = b""
        if chunk.tensor:
            identity = tensor_identity(self._keys.id_key, chunk.tensor, "", (), chunk.part)
            if (base := self._base(identity, name, len(data))) is not None:
                self._add(pack, [(name, data)], chunk.item_size, base)
                pack.tensors.append((pack.blocks - 1, identity, name))
                return pack.number
        builder = self._builders.get(chunk.item_size)
        if builder is None:
            builder = self._builders[chunk.item_size] = BlockBuilder(chunk.item_size)
        if identity:
            self._bases.put(identity, name)
        if full := builder.add(name, data):
            self._add(pack, full, chunk.item_size)
        return pack.number

    def _add(
        self,
        pack: _Pack,
        chunks: Sequence[StoredChunk],
        item_size: int,
        base: _Base | None = None,
    ) -> None:
        if base is None:
            pack.writer.add_block(chunks, item_size)
        else:
            pack.writer.add_block(chunks, item_size, (base.id, base.data), base_pack=base.pack)
        pack.blocks += 1
        self.check_size(pack.writer.size)

    def _base(self, identity: bytes, name: bytes, length: int) -> _Base | None:
        """What to take a difference from: stored whole, known to be there, and at hand."""
        base = self._bases.get(identity)
        if base is None or base == name:
            return None
        found = self._known.get(base)
        if found is None or found.length != length or found.is_difference:
            return None
        data = self._read_base(base)
        if data is None or len(data) != length or chunk_id(self._keys.id_key, data) != base:
            return None
        return _Base(base, found.pack, data)

    def _current(self) -> _Pack:
        if self._finishing is not None and self._finishing[1].done():
            self._settle()
        if self._pack is not None and self._pack.writer.is_full:
            self._flush()
        if self._pack is None:
            writer = PackWriter(self._storage, self._keys, self._count, self._pool)
            self._count += 1
            self._pack = _Pack(writer, self._number(writer.name))
        return self._pack

    def _flush(self) -> None:
        """Ends the pack, with all that has been gathered for it: the manifest names it already."""
        pack = self._pack
        if pack is None:
            return
        for item_size, builder in self._builders.items():
            if chunks := builder.take():
                self._add(pack, chunks, item_size)
        self._settle()
        self._pack = None
        self._finishing = pack, pack.writer.finishing()

    def _settle(self) -> None:
        """Remembers the pack that was ended last, once it is durable."""
        if self._finishing is None:
            return
        (pack, finishing), self._finishing = self._finishing, None
        table = finishing.result()
        self._pack_bytes += table.size
        # First: a run that is cut off here must not take away the key of a pack that is remembered.
        self.finished.append(table.name)
        self._known.add(self._keys, table, self._key_file)
        self.index.add(table)
        for row in table.ids:
            self._new.pop(row.tobytes(), None)
        for block, identity, name in pack.tensors:
            if table.block_codecs[block] != DIFFERENCE:
                self._bases.put(identity, name)

    def _number(self, pack: str) -> int:
        number = self._numbers.get(pack)
        if number is None:
            number = self._numbers[pack] = len(self._packs)
            self._packs.append(PackRef(pack, 0, ""))
        return number
