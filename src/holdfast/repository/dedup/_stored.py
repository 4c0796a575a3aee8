"""A backup in the deduplicating repository, opened for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata, Entry, SourceRecord
from holdfast.repository._manifest import ChunkRef, parse_chunks
from holdfast.repository._rows import Rows
from holdfast.repository.base import Tensors
from holdfast.repository.dedup._batch import Batch
from holdfast.repository.dedup._chunk_reader import ChunkReader
from holdfast.repository.dedup._digest import ContentDigest, digest_kind
from holdfast.repository.dedup._ids import key_name
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._tensors import tensors_of

Pieces = Iterator["bytes | memoryview"]


@dataclass(slots=True)
class _Current:
    """The entry that was given out last: where its chunks begin, if nobody has read them yet."""

    entry: Entry
    rows: Rows
    batch: Batch | None
    """Where it is, at `number`, if it is small. Else `rows` stands on it."""
    number: int = 0
    is_read: bool = False


class StoredManifest:
    """Implements `holdfast.repository.base.StoredBackup`."""

    def __init__(
        self,
        metadata: BackupMetadata,
        manifest: ManifestReader,
        chunks: ChunkReader,
        id_key: Callable[[], bytes],
    ) -> None:
        """`id_key` of the run that made it; asked when it is needed."""
        self.metadata = metadata
        self._id_key = id_key
        self.manifest = manifest
        self.reader = chunks
        self._current: _Current | None = None

    def close(self) -> None:
        """Ends the threads of the reader."""
        self.reader.close()

    @property
    def digests(self) -> str:
        return digest_kind(self._id_key())

    def sources(self) -> Sequence[SourceRecord]:
        return sorted(self.manifest.end.sources, key=lambda record: record.key)

    def entries(self, source: SourceRecord) -> Iterator[Entry]:
        entries = size = 0
        rows = self.manifest.rows((source.component, source.name))
        for current in self._each(rows):
            entry = current.entry
            if entry.kind == "deleted":
                raise CorruptBackup(
                    f"{self.metadata.backup_id}: the manifest deletes {entry.path} from nothing"
                )
            entries += 1
            size += entry.size if entry.kind == "file" else 0
            self._current = current
            yield entry
            self._current = None
        if (entries, size) != (source.entries, source.bytes):
            raise CorruptBackup(
                f"{self.metadata.backup_id}: {source.component} {source.name} holds {entries} entries "
                f"of {size} bytes, and should hold {source.entries} of {source.bytes}"
            )

    def _each(self, rows: Rows) -> Iterator[_Current]:
        while rows.row is not None:
            batch = Batch(rows, self.reader)
            for number, entry in enumerate(batch.entries):
                yield _Current(entry, rows, batch, number)
            if not batch.entries:
                yield _Current(rows.row.entry, rows, None)
                rows.advance()

    def chunks(self, entry: Entry) -> Iterator[ChunkRef]:
        """What an entry's content consists of, in order."""
        current = self._current
        if current is not None and current.entry is entry and current.batch is not None:
            yield from current.batch.chunks(current.number)
            return
        for line in self._locate(entry).parts():
            yield from parse_chunks(line)

    def read(self, entry: Entry) -> Pieces:
        digest = ContentDigest()
        current = self._current
        if current is not None and current.entry is entry and current.batch is not None:
            pieces = current.batch.read(current.number)
            if pieces is not None:
                for chunk in current.batch.chunks(current.number):
                    digest.add(chunk)
                self._compare(entry, digest)
                yield from pieces
                return
        # The reader compares each chunk with its id.
        yield from self.reader.read(self._told(entry, digest))
        self._compare(entry, digest)

    def _compare(self, entry: Entry, digest: ContentDigest) -> None:
        if digest.size != entry.size or digest.hexdigest() != entry.digest:
            raise CorruptBackup(f"{entry.path}: its content is not what the manifest says")

    def _told(self, entry: Entry, digest: ContentDigest) -> Iterator[ChunkRef]:
        for chunk in self.chunks(entry):
            digest.add(chunk)
            if digest.size > entry.size:
                return
            yield chunk

    def tensors(self, entry: Entry) -> Tensors | None:
        packs: set[int] = set()

        def chunks() -> Iterator[ChunkRef]:
            for chunk in self.chunks(entry):
                packs.add(chunk.pack)
                yield chunk

        found = tensors_of(chunks(), entry.size, lambda chunk: b"".join(self.reader.read([chunk])))
        keys = self.reader.id_keys(packs) if found is not None else set()
        # Ids under several keys in one file: then one content may have several.
        return Tensors(key_name(keys.pop()), found) if found is not None and len(keys) == 1 else None

    def _locate(self, entry: Entry) -> Rows:
        current = self._current
        if current is not None and current.entry is entry and not current.is_read:
            current.is_read = True
            return current.rows
        for source in self.sources():
            rows = self.manifest.rows((source.component, source.name))
            while rows.row is not None:
                if rows.row.entry == entry:
                    return rows
                rows.advance()
        raise CorruptBackup(f"{self.metadata.backup_id} does not hold {entry.path}")
