"""The lists in the local state: what recent backups hold, chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from blake3 import blake3
from isal import igzip

from holdfast.durable import private_file
from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata
from holdfast.repository.archive import _manifest as manifest
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._gzip_block import InflateError
from holdfast.repository.archive._manifest import Header
from holdfast.repository.archive._parent import ParentList, list_head
from holdfast.repository.archive._parts import PartsWriter, chunks
from holdfast.state import LocalState

LARGE = 256 << 10
"""Bytes. Files above it are cut into chunks."""

_KEEP = 8


def open_list(state: LocalState, metadata: BackupMetadata) -> ParentList | None:
    """The list of a backup; None when there is none, or it is damaged, or of another backup of the same id."""
    path = state.list_file(metadata.backup_id)
    try:
        _read_through(path)
        found = ParentList(path)
    except (OSError, EOFError, InflateError, CorruptBackup):
        return None
    if metadata.manifest is None or found.manifest_digest != metadata.manifest.digest:
        found.close()
        return None
    return found


def _read_through(path: Path) -> None:
    """Raises what gzip raises for a file that is not whole: better before a run rests on it than in the middle."""
    with igzip.open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def save(state: LocalState, metadata: BackupMetadata, lines: Iterator[bytes]) -> None:
    """Writes a backup's list. `lines`: pieces of it, not necessarily cut at line ends."""
    assert metadata.manifest is not None
    path = state.list_file(metadata.backup_id)
    temporary = path.with_suffix(".tmp")
    # Not fsynced: a list that a crash has cut short is noticed, and made again.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with (
        os.fdopen(fd, "wb") as raw,
        igzip.IGzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file,
    ):
        file.write(list_head(metadata.manifest.digest))
        for piece in lines:
            file.write(piece)
    temporary.replace(path)


def forget_old(state: LocalState, backups: Sequence[BackupMetadata]) -> None:
    """Keeps the lists that incrementals are likely to rest on: of the last full backup, and the newest few."""
    good = [metadata.backup_id for metadata in backups if metadata.is_good]
    wanted = set(good[:_KEEP]) | set([backup_id for backup_id in good if backup_id.startswith("full_")][:1])
    for left in state.list_file(good[0]).parent.glob("*.tmp"):
        left.unlink()
    for backup_id in state.lists():
        if backup_id not in wanted:
            state.list_file(backup_id).unlink(missing_ok=True)


def rebuild(state: LocalState, stored: StoredArchive) -> None:
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
        save(state, metadata, iter(lambda: spool.read(1 << 20), b""))
