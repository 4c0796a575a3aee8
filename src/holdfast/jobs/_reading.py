"""A backup's content on its way to where it is restored: bounded, counted and told; and the room that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from holdfast.durable import free_bytes
from holdfast.errors import HostileBackup, NoSpace, UsageError
from holdfast.events import Emit
from holdfast.jobs._progress import Progress
from holdfast.model import BackupMetadata, Component, Entry, SourceRecord, parse_components
from holdfast.repository.base import StoredBackup

_RESERVE = 16 << 20
"""Bytes left alone on every file system that is restored to."""


class Reading:
    """The entries of some sources of a backup, and what they hold."""

    def __init__(self, stored: StoredBackup, records: Sequence[SourceRecord], emit: Emit) -> None:
        self.entries = 0
        """Read so far."""
        self.bytes = 0
        """Of content, of those entries."""
        self.limit = sum(record.bytes for record in records)
        """Bytes that all of it has by its manifest."""
        self._stored = stored
        self._progress = Progress(emit)

    def entries_of(self, record: SourceRecord) -> Iterator[Entry]:
        """In order. Raises HostileBackup where they are more than the manifest adds up to."""
        for entry in self._stored.entries(record):
            self.entries += 1
            if entry.kind == "file":
                self.bytes += entry.size
                if self.bytes > self.limit:
                    raise HostileBackup("the backup unpacks to more than its manifest adds up to")
            yield entry
            self._progress(0, 1)

    def read(self, entry: Entry) -> Iterator[bytes | memoryview]:
        """See `holdfast.sources.base.Read`."""
        for piece in self._stored.read(entry):
            self._progress(len(piece))
            yield piece

    def flush(self) -> None:
        """Tells the progress that was not told yet."""
        self._progress.flush()


def check_room(needs: Mapping[Path, int], doing: str, hint: str) -> None:
    """Raises NoSpace where a file system has no room for the bytes that its directories need. `doing`: ``the
    restore``."""
    by_device: dict[int, tuple[Path, int]] = {}
    for directory, size in needs.items():
        while not directory.exists():
            directory = directory.parent
        device = directory.stat().st_dev
        by_device[device] = directory, size + by_device.get(device, (directory, 0))[1]
    for directory, size in by_device.values():
        free = free_bytes(directory)
        if size + _RESERVE > free:
            raise NoSpace(
                f"{doing} needs {size / 1e9:.3g} GB in {directory}, which has {free / 1e9:.3g} GB free",
                hint=hint,
            )


def chosen(metadata: BackupMetadata, components: Sequence[str] | None) -> tuple[Component, ...]:
    """The components of a backup that somebody asked for; None is all. Raises UsageError for one that it lacks."""
    wanted = parse_components(list(components)) if components is not None else metadata.components
    if lacking := [name for name in wanted if name not in metadata.components]:
        raise UsageError(
            f"{metadata.backup_id} does not hold {', '.join(lacking)}",
            hint=f"It holds {', '.join(metadata.components)}.",
        )
    return wanted
