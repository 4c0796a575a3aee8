"""One backup being stored in the deduplicating repository."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO

from holdfast.durable import temp_directory
from holdfast.errors import RepositoryError, SourceChanged
from holdfast.model import BackupMetadata, Component, Entry, SourceRecord, order_key
from holdfast.repository import _manifest as manifest
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import CHUNKS_DIGEST, CHUNKS_PER_LINE, ChunkRef, PackRef, Row
from holdfast.repository._rows import Rows
from holdfast.repository.base import Pieces, Stored
from holdfast.repository.dedup._chunk import in_groups
from holdfast.repository.dedup._chunk_store import ChunkStore
from holdfast.repository.dedup._cut import cut, is_one_chunk
from holdfast.repository.dedup._digest import ContentDigest, digest_kind
from holdfast.repository.dedup._manifest_object import ManifestWriter

_SPOOL = 1 << 20

Publish = Callable[["DedupRun", Sequence[PackRef], int, float, "bool | None"], BackupMetadata]


class DedupRun:
    """Implements `holdfast.repository.base.Run`. Every backup is whole: what it compares with only saves reading."""

    def __init__(
        self,
        backup_id: str,
        lines: ManifestWriter,
        store: ChunkStore,
        *,
        id_key: bytes,
        parent: ParentList | None,
        publish: Publish,
    ) -> None:
        """`parent`: the list of a backup whose packs are all there. `publish` makes what is stored a backup."""
        self.backup_id = backup_id
        self.warnings: list[str] = []
        self.committed: BackupMetadata | None = None
        self.lines = lines
        self.store = store
        self.records: list[SourceRecord] = []
        self._id_key = id_key
        self._parent = parent
        self._publish = publish
        self._rows: Rows | None = None
        self._key = ""
        self._entries = 0
        self._bytes = 0

    @property
    def digests(self) -> str:
        return digest_kind(self._id_key)

    def begin_source(self, component: Component, name: str) -> bool:
        key = (component, name)
        self._rows = self._parent.rows(key) if self._parent is not None else None
        self.lines.write(manifest.source_line(key, whole=True))
        self._key = ""
        self._entries = self._bytes = 0
        return self._rows is not None

    def known(self, path: str) -> Row | None:
        rows = self._rows
        if rows is None:
            return None
        wanted = order_key(path)
        while rows.row is not None:
            if rows.key >= wanted:
                return rows.row if rows.key == wanted else None
            rows.advance()
        return None

    def keep(self, known: Row) -> None:
        assert self._rows is not None
        key = self._in_order(known.entry)
        self.lines.write(known.line)
        if known.pack is not None:
            self.store.use(known.pack)
        else:
            for line in self._rows.parts():
                self.lines.write(line)
                for chunk in manifest.parse_chunks(line):
                    self.store.use(chunk.pack)
        self._count(known.entry)
        self._rows.advance()
        self._key = key

    def add(self, entry: Entry, content: Stored | None, known: Row | None) -> Entry:
        key = self._in_order(entry)
        if content is None:
            self.lines.write(manifest.entry_line(entry))
        elif content.data is not None and len(content.data) == content.size and is_one_chunk(content.data):
            # Most files are so, and cutting and gathering takes longer than all else that is done with them.
            entry = self._add_one(entry, self.store.put_one(content.data))
        else:
            pieces: Pieces = iter((content.data,)) if content.data is not None else content.stream or iter(())
            entry = self._add_content(entry, pieces, content.size)
        if known is not None and self._rows is not None:
            self._rows.advance()
        self._count(entry)
        self._key = key
        return entry

    def end_source(self, record: SourceRecord) -> None:
        self._rows = None
        self.records.append(replace(record, entries=self._entries, bytes=self._bytes))

    def commit(
        self, *, warnings: int, duration_seconds: float, coherent: bool | None = None
    ) -> BackupMetadata:
        if self._parent is not None:
            moments = self._parent.moments()
            self.records = [
                replace(record, moment=record.moment or moments.get(record.key, {}))
                for record in self.records
            ]
        packs = self.store.finish()
        self.committed = self._publish(self, packs, warnings, duration_seconds, coherent)
        return self.committed

    def abort(self) -> None:
        """Frees what the run holds. Packs that are finished stay, and the next run finds them."""
        self.store.abort()
        self.lines.close()

    def _add_content(self, entry: Entry, pieces: Pieces, size: int | None) -> Entry:
        digest = ContentDigest()
        with closing(_ChunkLines()) as chunks:
            for chunk in self.store.put(in_groups(cut(pieces, self._id_key))):
                chunks.add(chunk)
                digest.add(chunk)
                if size is not None and digest.size > size:
                    raise SourceChanged(f"{entry.path} gave more than the {size} bytes that it has")
            if size is not None and digest.size != size:
                raise SourceChanged(f"{entry.path} gave {digest.size} bytes instead of {size}")
            if (one := chunks.one()) is not None:
                return self._add_one(entry, one)
            entry = entry._replace(size=digest.size, digest=digest.hexdigest())
            lines = chunks.finish()
            self.lines.write(manifest.entry_line(entry, None, lines, digest=CHUNKS_DIGEST))
            self.lines.writelines(chunks.drain())
        return entry

    def _add_one(self, entry: Entry, chunk: ChunkRef) -> Entry:
        entry = entry._replace(size=chunk.length, digest=chunk.id)
        self.lines.write(manifest.entry_line(entry, digest=CHUNKS_DIGEST, pack=chunk.pack))
        return entry

    def _in_order(self, entry: Entry) -> str:
        """The entry's place. No reader takes a manifest in another order: better no backup than one that cannot be
        restored."""
        key = order_key(entry.path)
        if key <= self._key:
            raise RepositoryError(f"{entry.path} came out of order, after {self._key!r}")
        return key

    def _count(self, entry: Entry) -> None:
        self._entries += 1
        self._bytes += entry.size if entry.kind == "file" else 0


class _ChunkLines:
    """The chunks of one file as lines: how many there are stands before them, and is known after them."""

    def __init__(self) -> None:
        self._batch: list[ChunkRef] = []
        self._lines = 0
        self._spool: IO[bytes] | None = None

    def add(self, chunk: ChunkRef) -> None:
        if len(self._batch) == CHUNKS_PER_LINE:
            if self._spool is None:
                self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by `close`
                    max_size=_SPOOL, dir=str(temp_directory())
                )
            self._spool.write(manifest.chunks_line(self._batch))
            self._lines += 1
            self._batch = []
        self._batch.append(chunk)

    def one(self) -> ChunkRef | None:
        """The only chunk; None where there are more, or none."""
        return self._batch[0] if len(self._batch) == 1 and self._spool is None else None

    def finish(self) -> int:
        """How many lines there are."""
        return self._lines + bool(self._batch)

    def drain(self) -> Iterator[bytes]:
        """All of them, once."""
        if self._spool is not None:
            self._spool.seek(0)
            yield from self._spool
        if self._batch:
            yield manifest.chunks_line(self._batch)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
