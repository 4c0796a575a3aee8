"""Reads chunks out of packs: blocks are opened by several threads, ahead of who asks for them."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import ChunkRef, PackRef
from holdfast.repository._parity_storage import checked
from holdfast.repository.dedup._ids import Bytes
from holdfast.repository.dedup._index import ChunkIndex, ChunkPlace
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._moved import missing_pack
from holdfast.repository.dedup._names import pack_path, parse_object_name
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._table import BlockRow, PackTable
from holdfast.storage.base import OpenObject, Storage

KeysOf = Callable[[str], RunKeys]
"""The keys of a run. Raises CorruptBackup, KeyMissing, KeyWrong."""

_AHEAD = 8
"""Blocks that are opened before they are asked for."""
_KEPT_BLOCKS = 32
"""Opened ones, mostly of a MiB: small files share one."""
_OPEN_PACKS = 32
_BATCH = 1024
_DEPTH = 4
"""Of differences from differences. A writer makes none; a reader must not be led round in circles."""


class _Block(NamedTuple):
    pack: str
    position: int


class _Span(NamedTuple):
    """Chunks one after the other in a block."""

    place: ChunkPlace
    """Of the first."""
    length: int
    """Of all of them."""

    def is_followed_by(self, place: ChunkPlace) -> bool:
        first = self.place
        return (place.pack, place.block.position, place.offset) == (
            first.pack,
            first.block.position,
            first.offset + self.length,
        )


class ChunkReader:
    """The chunks of one backup, or of several. For one thread."""

    def __init__(
        self,
        storage: Storage,
        keys_of: KeysOf,
        packs: Sequence[PackRef],
        *,
        name: str,
        moved: Mapping[str, Sequence[PackRef]] | None = None,
    ) -> None:
        """`packs`: where the chunks lie. `name`: what errors call the backup. `moved`: what has the chunks of packs
        that are not there any more; see `_moved`."""
        self._storage = storage
        self._keys_of = keys_of
        self._packs = packs
        self._moved = moved or {}
        self._name = name
        self._index = ChunkIndex()
        self._loaded: set[int] = set()
        self._indexed: set[str] = set()
        # Apart: a pack that is needed for bases may hold differences whose own bases nobody needs.
        self._bases = ChunkIndex()
        self._loaded_bases: set[int] = set()
        self._indexed_bases: set[str] = set()
        self._readers: OrderedDict[str, tuple[OpenObject, PackReader]] = OrderedDict()
        self._blocks: OrderedDict[_Block, Future[Bytes]] = OrderedDict()
        self._opened: dict[str, bytearray] = {}
        """Of each pack, which blocks were opened and found good."""
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="open")

    def read(self, chunks: Iterable[ChunkRef]) -> Iterator[memoryview]:
        """The content of chunks, in order, each compared with its id. Raises CorruptBackup."""
        window: deque[tuple[_Span, Future[Bytes]]] = deque()
        for span in self._spans(chunks):
            window.append((span, self._block(span.place)))
            if len(window) > _AHEAD:
                yield _content(*window.popleft())
        while window:
            yield _content(*window.popleft())

    def chunk(self, name: bytes) -> bytes:
        """One chunk by its id, in whichever pack it lies. Raises CorruptBackup when none has it."""
        place = self._find(name, "")
        block = self._block(place).result()
        return bytes(block[place.offset : place.offset + place.length])

    def id_keys(self, packs: Iterable[int]) -> set[bytes]:
        """The keys that name the chunks in these packs of the list. Raises CorruptBackup, KeyMissing, KeyWrong."""
        listed = (self._pack(number) for number in packs)
        places = {place.name for pack in listed for place in self._moved.get(pack.name, (pack,))}
        return {self._keys_of(parse_object_name(place)[0]).id_key for place in places}

    def where(self, name: bytes, pack: str) -> str:
        """The pack in which a chunk is found; `pack` if it is there. Raises CorruptBackup when none has it."""
        return self._find(name, pack).pack

    def prove(self, packs: Iterable[PackRef]) -> None:
        """Proves every bit of packs: of blocks that were read, their chunks were compared; the others are opened
        now. Table and blocks are sealed, with the header; what is left is compared. Raises CorruptBackup."""
        for pack in packs:
            reader = self._reader(pack.name)
            if reader.table.hash != pack.hash:
                raise CorruptBackup(
                    f"pack {pack.name}, which {self._name} needs, is damaged: it is another one"
                )
            left = [position for position, done in enumerate(self._opened[pack.name]) if not done]
            for _ in self._pool.map(reader.authenticate, left):
                pass

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for source, _ in self._readers.values():
            source.close()
        self._readers.clear()

    def _spans(self, chunks: Iterable[ChunkRef]) -> Iterator[_Span]:
        """Where chunks lie, those together that lie one after the other in one block."""
        span: _Span | None = None
        for place in self._places(chunks):
            if span is not None and span.is_followed_by(place):
                span = span._replace(length=span.length + place.length)
                continue
            if span is not None:
                yield span
            span = _Span(place, place.length)
        if span is not None:
            yield span

    def _places(self, chunks: Iterable[ChunkRef]) -> Iterator[ChunkPlace]:
        rest = iter(chunks)
        while batch := list(islice(rest, _BATCH)):
            for number in {ref.pack for ref in batch} - self._loaded:
                self._load(number)
            found = self._index.find_many([bytes.fromhex(ref.id) for ref in batch])
            for ref, place in zip(batch, found, strict=True):
                if place is None or place.length != ref.length:
                    raise CorruptBackup(
                        f"{self._name}: pack {self._packs[ref.pack].name} does not hold the chunk {ref.id}"
                    )
                yield place

    def _find(self, name: bytes, pack: str) -> ChunkPlace:
        """Where a chunk lies: in `pack`, if it is one of those listed, else in whichever has it, best whole."""
        place = self._bases.get(name)
        if place is None or place.block.base is not None:
            for number in sorted(
                range(len(self._packs)), key=lambda number: self._packs[number].name != pack
            ):
                if number in self._loaded_bases or not self._packs[number].hash:
                    continue
                for table in self._tables(number, self._indexed_bases):
                    self._bases.add(table)
                self._loaded_bases.add(number)
                place = self._bases.get(name)
                if place is not None and place.block.base is None:
                    break
        if place is None:
            raise CorruptBackup(f"{self._name}: no pack holds the chunk {name.hex()}")
        return place

    def _load(self, number: int) -> None:
        """Takes in the table of a pack."""
        if number not in self._loaded:
            for table in self._tables(number, self._indexed):
                self._index.add(table)
            self._loaded.add(number)

    def _pack(self, number: int) -> PackRef:
        if number >= len(self._packs) or not self._packs[number].hash:
            raise CorruptBackup(f"{self._name}: a chunk is said to lie in a pack that is not listed")
        return self._packs[number]

    def _tables(self, number: int, taken: set[str]) -> Iterator[PackTable]:
        """The tables of a pack, or of those that have its chunks, which are not taken yet: many may be in one."""
        pack = self._pack(number)
        for place in self._moved.get(pack.name, (pack,)):
            if place.name not in taken:
                table = self._reader(place.name).table
                taken.add(place.name)
                yield table

    def _reader(self, pack: str) -> PackReader:
        held = self._readers.get(pack)
        if held is not None:
            self._readers.move_to_end(pack)
            return held[1]
        run, _ = parse_object_name(pack)
        try:
            source = self._storage.open(pack_path(pack))
        except FileNotFoundError:
            raise missing_pack(pack, self._name) from None
        try:
            keys = self._keys_of(run)
            reader = checked(source, lambda: PackReader(source, pack, keys))
        except BaseException:
            source.close()
            raise
        self._readers[pack] = source, reader
        self._opened.setdefault(pack, bytearray(reader.table.block_count))
        while len(self._readers) > _OPEN_PACKS:
            # Blocks of it may still be on their way: they are awaited first.
            old, (oldest, _) = self._readers.popitem(last=False)
            for block in [block for block in self._blocks if block.pack == old]:
                self._blocks.pop(block).exception()
            oldest.close()
        return reader

    def _block(self, place: ChunkPlace, depth: int = 0) -> Future[Bytes]:
        """The block that a chunk lies in, opened or on its way."""
        key = _Block(place.pack, place.block.position)
        held = self._blocks.get(key)
        if held is None:
            reader = self._reader(place.pack)
            base = place.block.base
            if base is None:
                held = self._pool.submit(_open, reader, place.block, None, self._opened[place.pack])
            else:
                if depth >= _DEPTH:
                    raise CorruptBackup(f"{self._name}: a difference rests on itself")
                held = self._after(self._find(base, place.block.base_pack), reader, place.block, depth)
            self._blocks[key] = held
            self._forget_blocks()
        else:
            self._blocks.move_to_end(key)
        return held

    def _after(self, base: ChunkPlace, reader: PackReader, row: BlockRow, depth: int) -> Future[Bytes]:
        """A difference, opened once its base is. No thread of the pool waits for another."""
        opened: Future[Bytes] = Future()

        def settle(done: Future[Bytes]) -> None:
            if error := done.exception():
                opened.set_exception(error)
            else:
                opened.set_result(done.result())

        def start(done: Future[Bytes]) -> None:
            try:
                whole = done.result()[base.offset : base.offset + base.length]
                opening = self._pool.submit(_open, reader, row, whole, self._opened[reader.name])
                opening.add_done_callback(settle)
            except BaseException as error:  # noqa: BLE001 - it is raised to whoever asks for the block
                opened.set_exception(error)

        self._block(base, depth + 1).add_done_callback(start)
        return opened

    def _forget_blocks(self) -> None:
        while len(self._blocks) > _KEPT_BLOCKS:
            # Awaited: what still reads must be found when its pack is closed.
            self._blocks.popitem(last=False)[1].exception()


def _content(span: _Span, opened: Future[Bytes]) -> memoryview:
    start = span.place.offset
    return memoryview(opened.result())[start : start + span.length]


def _open(reader: PackReader, row: BlockRow, base: Bytes | None, opened: bytearray) -> Bytes:
    """In a thread: a block's raw bytes, each of its chunks compared with its id. `opened`: where that is noted."""

    def read() -> Bytes:
        raw = reader.block(row.position, lambda _: base or b"")
        reader.compare(row.position, raw)
        opened[row.position] = 1
        return raw

    return checked(reader.source, read)
