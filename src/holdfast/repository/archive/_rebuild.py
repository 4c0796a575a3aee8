"""Making the list of a backup again, from its archives."""

from __future__ import annotations

from contextlib import closing

from blake3 import blake3

from holdfast.durable import private_file
from holdfast.repository import _lists as lists
from holdfast.repository import _manifest as manifest
from holdfast.repository._manifest import Header
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._parts import PartsWriter, chunks
from holdfast.state import LocalState

LARGE = 256 << 10
"""Bytes. Files above it are cut into chunks."""


def rebuild_list(state: LocalState, stored: StoredArchive) -> None:
    """Makes the list of a backup again by reading all of it. Raises CorruptBackup where it is not what it was."""
    metadata = stored.metadata
    with private_file() as spool:
        spool.write(manifest.header_line(Header(metadata.backup_id, metadata.type, metadata.timestamp, metadata.host,
                                                metadata.tool, metadata.components, metadata.parent)))  # fmt: skip
        for source in stored.sources():
            spool.write(manifest.source_line((source.component, source.name), whole=True))
            for entry in stored.entries(source):
                if entry.kind != "file" or entry.size <= LARGE:
                    spool.write(manifest.entry_line(entry))
                    continue
                with closing(PartsWriter()) as parts:
                    offset = 0
                    for chunk in chunks(stored.read(entry)):
                        parts.data(offset, len(chunk), blake3(chunk).hexdigest())
                        offset += len(chunk)
                    spool.write(manifest.entry_line(entry, None, parts.finish()))
                    spool.writelines(parts.drain())
        spool.write(manifest.end_line(metadata.entries, metadata.source_bytes, stored.sources()))
        spool.seek(0)
        state.make()
        lists.save(state, metadata, iter(lambda: spool.read(1 << 20), b""))
