"""One archive being written: a tar of entries, a manifest last, compressed, perhaps encrypted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import IO

from blake3 import blake3

from holdfast.crypto import Recipient, SealingWriter
from holdfast.durable import private_file
from holdfast.errors import RepositoryError, SizeLimitExceeded, SourceChanged
from holdfast.model import BackupMetadata, Component, Entry, ManifestLocation, SourceRecord, order_key
from holdfast.repository import _manifest as manifest
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import Header, Row
from holdfast.repository._rows import Rows
from holdfast.repository.archive import _tar as tar
from holdfast.repository.archive._chunk_table import ChunkTable
from holdfast.repository.archive._gzip_writer import GzipWriter
from holdfast.repository.archive._parts import PartsWriter, Pieces, chunks
from holdfast.repository.base import SHA256, Stored
from holdfast.storage.base import Upload

# What an incremental carries of a large file, and a dump whose size is not known before its end, are written as
# members of at most so many bytes: a tar header must know its member's size.
_PIECE = 32 << 20
_PADDING = [tar.padding(rest) for rest in range(tar.BLOCK)]
_PATCH_PIECE = 8 << 20


class ArchiveRun:
    """Implements `holdfast.repository.base.Run`."""

    def __init__(
        self,
        header: Header,
        upload: Upload,
        *,
        level: int,
        recipients: tuple[Recipient, ...],
        max_bytes: int | None,
        parent: ParentList | None,
        publish: Callable[[ArchiveRun, int, float, bool | None], BackupMetadata] | None = None,
    ) -> None:
        """`publish` makes the finished archive a backup, given the warnings and the seconds it took; whoever wants
        just the archive calls `finish`."""
        self.backup_id = header.id
        self.warnings: list[str] = []
        self.committed: BackupMetadata | None = None
        self._publish = publish
        self.entries = 0
        self.source_bytes = 0
        self._upload = upload
        self._parent = parent
        self._rows: Rows | None = None
        self._key = ""
        self._records: list[SourceRecord] = []
        sink = _Limited(upload, max_bytes)
        self._seal = SealingWriter(sink, recipients) if recipients else None
        self._gzip = GzipWriter(self._seal or sink, level)
        self._manifest = private_file()
        self._resolved = private_file() if parent is not None else None
        self._line(manifest.header_line(header))

    @property
    def digests(self) -> str:
        return SHA256

    def begin_source(self, component: Component, name: str) -> bool:
        key = (component, name)
        self._rows = self._parent.rows(key) if self._parent is not None else None
        self._line(manifest.source_line(key, whole=self._rows is None))
        self._key = ""
        return self._rows is not None

    def known(self, path: str) -> Row | None:
        rows = self._rows
        if rows is None or rows.row is None:
            return None
        wanted = order_key(path)
        while rows.row is not None:
            key = rows.key
            if key == wanted:
                return rows.row
            if key > wanted:
                return None
            self._manifest.write(manifest.deleted_line(rows.row.entry.path))
            rows.advance()
        return None

    def keep(self, known: Row) -> None:
        assert self._rows is not None
        self._count(known.entry)
        if self._resolved is not None:
            self._resolved.write(known.line)
            self._resolved.writelines(self._rows.parts())
        self._rows.advance()

    def add(self, entry: Entry, content: Stored | None, known: Row | None) -> Entry:
        key = order_key(entry.path)
        if key <= self._key:
            # No reader would take such a manifest: better no backup than one that cannot be restored.
            raise RepositoryError(f"{entry.path} came out of order, after {self._key!r}")
        if content is None:
            self._gzip.write(tar.header(entry))
            self._line(manifest.entry_line(entry))
        elif content.data is not None:
            entry = self._add_small(entry, content.data)
        elif content.stream is not None:
            if known is not None and known.parts and self._rows is not None:
                with closing(ChunkTable(self._rows.parts())) as table:
                    entry = self._add_pieces(
                        entry, content.stream, table, f"changed/{entry.path}", _PATCH_PIECE
                    )
            elif content.size is None:
                entry = self._add_pieces(entry, content.stream, None, entry.path, _PIECE)
            else:
                entry = self._add_large(entry, content.stream, content.size)
        if known is not None and self._rows is not None:
            self._rows.advance()
        self._count(entry)
        self._key = key
        return entry

    def end_source(self, record: SourceRecord) -> None:
        if self._rows is not None:
            while (row := self._rows.row) is not None:
                self._manifest.write(manifest.deleted_line(row.entry.path))
                self._rows.advance()
        self._rows = None
        entries = self.entries - sum(known.entries for known in self._records)
        size = self.source_bytes - sum(known.bytes for known in self._records)
        self._records.append(replace(record, entries=entries, bytes=size))

    def commit(
        self, *, warnings: int, duration_seconds: float, coherent: bool | None = None
    ) -> BackupMetadata:
        assert self._publish is not None
        self.committed = self._publish(self, warnings, duration_seconds, coherent)
        return self.committed

    def finish(self, *, coherent: bool | None = None) -> ManifestLocation:
        """Writes the manifest. `store` is all that is left to do."""
        if self._parent is not None:
            moments = self._parent.moments()
            self._records = [
                replace(record, moment=record.moment or moments.get(record.key, {}))
                for record in self._records
            ]
        compressed_offset, _ = self._gzip.cut()
        for line in manifest.blocks_lines(self._gzip.blocks):
            self._manifest.write(line)
        end = manifest.end_line(self.entries, self.source_bytes, self._records, coherent=coherent)
        self._line(end)
        size = self._manifest.tell()
        self._gzip.write(tar.header(Entry(manifest.NAME, "file", size, 0o600)))
        digest = hashlib.sha256()
        for piece in _contents(self._manifest):
            digest.update(piece)
            self._gzip.write(piece)
        self._gzip.write(tar.padding(size) + tar.END)
        self._gzip.close()
        if self._seal is not None:
            self._seal.close()
        return ManifestLocation(digest.hexdigest(), size, compressed_offset)

    def store(self) -> tuple[str, int]:
        """Makes the archive durable, and gives it its name. Returns its SHA-256 and its size."""
        return self._upload.publish(), self._upload.size

    def resolved(self) -> Iterator[bytes]:
        """The lines of this backup's list: what a full backup's manifest would have said."""
        return _contents(self._resolved or self._manifest)

    def abort(self) -> None:
        """Forgets what is not committed, and frees what the run holds."""
        self._gzip.abort()
        self._upload.abort()
        for spool in (self._manifest, self._resolved):
            if spool is not None:
                with suppress(OSError):  # What is left in its buffer is of no use any more.
                    spool.close()

    def _add_small(self, entry: Entry, data: bytes) -> Entry:
        size = len(data)
        entry = entry._replace(size=size, digest=hashlib.sha256(data).hexdigest())
        head = tar.header(entry)
        offset = self._gzip.raw_size + len(head)
        self._gzip.write(b"%b%b%b" % (head, data, _PADDING[size % tar.BLOCK]))
        self._line(manifest.entry_line(entry, offset))
        return entry

    def _add_large(self, entry: Entry, stream: Pieces, size: int) -> Entry:
        """Writes a file of known size as one member."""
        entry = entry._replace(size=size)
        self._gzip.write(tar.header(entry))
        start = self._gzip.raw_size
        end = start + size
        whole = hashlib.sha256()
        with closing(PartsWriter()) as parts:
            try:
                for chunk in chunks(stream):
                    offset = self._gzip.raw_size
                    if len(chunk) > end - offset:
                        raise SourceChanged(f"{entry.path} gave more than the {size} bytes that it has")
                    parts.data(offset, len(chunk), blake3(chunk).hexdigest())
                    whole.update(chunk)
                    self._gzip.write(chunk)
                if self._gzip.raw_size != end:
                    given = self._gzip.raw_size - start
                    raise SourceChanged(f"{entry.path} gave {given} bytes instead of {size}")
            except SourceChanged:
                # The member must be as long as its header says. Another of the same name will follow, and tar lets
                # the last one win.
                self._zeros(end - self._gzip.raw_size)
                self._gzip.write(tar.padding(size))
                raise
            self._gzip.write(tar.padding(size))
            entry = entry._replace(digest=whole.hexdigest())
            self._line(manifest.entry_line(entry, start, parts.finish()), parts.drain())
        return entry

    def _add_pieces(
        self, entry: Entry, stream: Pieces, table: ChunkTable | None, name: str, limit: int
    ) -> Entry:
        """Writes what `table` lacks of a stream as numbered members."""
        whole = hashlib.sha256()
        size = 0
        piece = _Piece(self._gzip, entry, name)
        with closing(PartsWriter()) as parts, closing(PartsWriter()) as resolved, piece.emptied_on_error():
            for chunk in chunks(stream):
                digest = blake3(chunk)
                whole.update(chunk)
                held = table.find(digest.digest()) if table is not None else None
                if held is None:
                    parts.data(piece.take(chunk), len(chunk), digest.hexdigest())
                    if piece.length >= limit:
                        piece.flush()
                else:
                    parts.copy(held, len(chunk))
                resolved.data(size, len(chunk), digest.hexdigest())
                size += len(chunk)
            piece.flush()
            entry = entry._replace(size=size, digest=whole.hexdigest())
            self._manifest.write(manifest.entry_line(entry, None, parts.finish()))
            self._manifest.writelines(parts.drain())
            if self._resolved is not None:
                self._resolved.write(manifest.entry_line(entry, None, resolved.finish()))
                self._resolved.writelines(resolved.drain())
        return entry

    def _zeros(self, count: int) -> None:
        while count > 0:
            step = min(count, 1 << 20)
            self._gzip.write(bytes(step))
            count -= step

    def _line(self, line: bytes, following: Iterable[bytes] = ()) -> None:
        self._manifest.write(line)
        if self._resolved is not None:
            self._resolved.write(line)
        for other in following:
            self._manifest.write(other)
            if self._resolved is not None:
                self._resolved.write(other)

    def _count(self, entry: Entry) -> None:
        self.entries += 1
        self.source_bytes += entry.size if entry.kind == "file" else 0


class _Piece:
    """A member that grows until it is flushed."""

    def __init__(self, gzip: GzipWriter, entry: Entry, name: str) -> None:
        self._gzip = gzip
        self._entry = entry._replace(xattrs=None)
        self._name = name
        self._number = 1
        self._buffer = bytearray()

    @property
    def length(self) -> int:
        return len(self._buffer)

    def take(self, data: memoryview) -> int:
        """Adds to the member, and returns where in the tar the data will lie."""
        offset: int = self._gzip.raw_size + len(self._header(0)) + len(self._buffer)
        self._buffer += data
        return offset

    @contextmanager
    def emptied_on_error(self) -> Iterator[None]:
        """What was written before the error must not be taken for content by whoever joins the extracted pieces."""
        try:
            yield
        except SourceChanged:
            written, self._number = self._number, 1
            while self._number < written:
                self._gzip.write(self._header(0))
                self._number += 1
            raise

    def flush(self) -> None:
        if not self._buffer:
            return
        self._gzip.write(self._header(len(self._buffer)))
        self._gzip.write(self._buffer)
        self._gzip.write(tar.padding(len(self._buffer)))
        self._buffer = bytearray()
        self._number += 1

    def _header(self, size: int) -> bytes:
        return tar.header(self._entry, name=f"{self._name}.{self._number:05d}", size=size)


class _Limited:
    """Stops a backup before it fills the disk."""

    def __init__(self, upload: Upload, limit: int | None) -> None:
        self._upload = upload
        self._limit = limit

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if self._limit is not None and self._upload.size + len(data) > self._limit:
            raise SizeLimitExceeded(f"the backup would be larger than {self._limit / 1e9:g} GB")
        return self._upload.write(data)


def _contents(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(1 << 20):
        yield piece
