"""The lists in the local state: what recent backups hold, so that the next run need not ask their repository."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from isal import igzip, isal_zlib

from holdfast.errors import CorruptBackup
from holdfast.model import COMPONENTS, BackupMetadata
from holdfast.repository._manifest import (
    Header,
    PackRef,
    SourceKey,
    is_end,
    parse_end,
    parse_header,
    parse_packs,
    source_of,
)
from holdfast.repository._rows import Lines, Rows
from holdfast.state import LocalState

_KEEP = 8
_PIECE = 256 << 10
_INFLATE_ERROR = cast("type[Exception]", isal_zlib.error)


def open_list(state: LocalState, metadata: BackupMetadata) -> ParentList | None:
    """The list of a backup; None when there is none, or it is damaged, or of another backup of the same id."""
    path = state.list_file(metadata.backup_id)
    try:
        _read_through(path)
        found = ParentList(path)
    except (OSError, EOFError, _INFLATE_ERROR, CorruptBackup):
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


def lines_of(state: LocalState, metadata: BackupMetadata) -> Iterator[bytes]:
    """The lines of a list that `open_list` has opened, but for the one before its first."""
    with igzip.open(state.list_file(metadata.backup_id), "rb") as file:
        file.readline()
        yield from file


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
    """Keeps the lists that incrementals are likely to rest on: of the last full backup, and the newest few; of those
    that are here, for other hosts may make many meanwhile."""
    held = set(state.lists())
    good = [metadata.backup_id for metadata in backups if metadata.is_good and metadata.backup_id in held]
    wanted = set(good[:_KEEP]) | set([backup_id for backup_id in good if backup_id.startswith("full_")][:1])
    for backup_id in held - wanted:
        state.list_file(backup_id).unlink(missing_ok=True)
    for left in (state.repository / "lists").glob("*.tmp"):
        left.unlink()


def list_head(manifest_digest: str) -> bytes:
    """The line before a list's first: which manifest it belongs to."""
    return json.dumps({"manifest": manifest_digest}).encode() + b"\n"


class ParentList:
    """A list, opened. Sources are asked for in their order, once each."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError when there is no such list, CorruptBackup when it cannot be read."""
        # Its own `readline` is written in Python.
        self._file: IO[bytes] = io.BufferedReader(cast("io.RawIOBase", igzip.open(path, "rb")), _PIECE)
        try:
            self._lines = Lines(self._file)
            self.manifest_digest = str(json.loads(self._lines.line)["manifest"])
            self._lines.advance()
            self.header: Header = parse_header(self._lines.line)
            self._lines.advance()
            self.packs: list[PackRef] = []
            """In a list of the deduplicating format: what its chunks lie in."""
            while packs := parse_packs(self._lines.line):
                self.packs += packs
                self._lines.advance()
        except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
            self._file.close()
            raise CorruptBackup(f"{path} is damaged: {error}") from error

    def rows(self, key: SourceKey) -> Rows | None:
        """The entries of a source; None when the parent lacks it."""
        while self._lines.line:
            found = source_of(self._lines.line)
            if found and found[0] == key:
                self._lines.advance()
                return Rows(self._lines)
            if found and _rank(found[0]) > _rank(key):
                return None
            self._lines.advance()
        return None

    def all_rows(self) -> Iterator[tuple[SourceKey, Rows]]:
        """The entries of every source, in order; each to be gone through before the next is asked for."""
        while self._lines.line:
            found = source_of(self._lines.line)
            self._lines.advance()
            if found:
                yield found[0], Rows(self._lines)

    def moments(self) -> dict[tuple[int, str], dict[str, Any]]:
        """What is remembered of each source, by its key. To be asked after all `rows`; empty when it is not known."""
        while self._lines.line:
            if is_end(self._lines.line):
                return {record.key: record.moment for record in parse_end(self._lines.line).sources}
            self._lines.advance()
        return {}

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rank(key: SourceKey) -> tuple[int, str]:
    component, name = key
    return [str(known) for known in COMPONENTS].index(component), name
