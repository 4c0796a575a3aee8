"""What the parent of an incremental holds, read from the list in the local state."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from isal import igzip

from holdfast.errors import CorruptBackup
from holdfast.model import COMPONENTS
from holdfast.repository.archive._manifest import (
    Header,
    Lines,
    Rows,
    SourceKey,
    is_end,
    parse_end,
    parse_header,
    parse_part,
    source_of,
)


def list_head(manifest_digest: str) -> bytes:
    """The line before a list's first: which manifest it belongs to."""
    return json.dumps({"manifest": manifest_digest}).encode() + b"\n"


class ParentList:
    """A list, opened. Sources are asked for in their order, once each."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError when there is no such list, CorruptBackup when it cannot be read."""
        self._file: IO[bytes] = igzip.open(path, "rb")
        try:
            self._lines = Lines(self._file)
            self.manifest_digest = str(json.loads(self._lines.line)["manifest"])
            self._lines.advance()
            self.header: Header = parse_header(self._lines.line)
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


class ChunkTable:
    """Where in a file its parent's version has each chunk.

    A private database that spills to disk, so that memory does not grow with the file.
    """

    def __init__(self, part_lines: Iterator[bytes]) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE chunk (id BLOB PRIMARY KEY, offset INT) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR IGNORE INTO chunk VALUES (?, ?)", _offsets(part_lines))

    def find(self, digest: bytes) -> int | None:
        """The chunk's offset in the parent's version of the file."""
        found = self._database.execute("SELECT offset FROM chunk WHERE id = ?", (digest,)).fetchone()
        return None if found is None else int(found[0])

    def close(self) -> None:
        self._database.close()


def _offsets(part_lines: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    offset = 0
    for line in part_lines:
        for length, digest in parse_part(line).chunks:
            yield bytes.fromhex(digest), offset
            offset += length


def _rank(key: SourceKey) -> tuple[int, str]:
    component, name = key
    return [str(known) for known in COMPONENTS].index(component), name
