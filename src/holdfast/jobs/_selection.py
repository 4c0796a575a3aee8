"""Some of a backup's files and directories, as a backup of its own."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from holdfast.errors import HostileBackup, RestoreError
from holdfast.model import Entry, SourceRecord
from holdfast.repository.base import Pieces, StoredBackup, Tensors

SourceKey = tuple[int, str]
IsThere = Callable[[SourceRecord, str], bool]
"""Whether a directory of the backup is there already where it would be restored to, and so is left as it is."""


class Selection:
    """What was chosen of a backup. Implements `holdfast.repository.base.StoredBackup`.

    Beside what was chosen it holds the directories above that, where they are to be made. A further name of a file
    whose first name was not chosen becomes the file.
    """

    def __init__(
        self, stored: StoredBackup, chosen: Mapping[SourceKey, Sequence[str]], is_there: IsThere
    ) -> None:
        """`chosen`: entry paths of each source, none of which lies in another. Reads the manifest, and no content."""
        self.metadata = stored.metadata
        self._stored = stored
        self._chosen = chosen
        self._originals = {record.key: record for record in stored.sources() if record.key in chosen}
        self._above = {
            key: {path for inner in chosen[key] for path in _above(record, inner, is_there)}
            for key, record in self._originals.items()
        }
        self._renamed: tuple[Entry, Entry] | None = None
        self._records = [self._summed(record) for record in self._originals.values()]

    @property
    def digests(self) -> str:
        return self._stored.digests

    def tops(self, source: SourceRecord) -> list[str]:
        """Its uppermost entries: what is put in place, with all that is in it here."""
        above = self._above[source.key]
        paths = {*above, *self._chosen[source.key]}
        return sorted(path for path in paths if path.rpartition("/")[0] not in above)

    def sources(self) -> Sequence[SourceRecord]:
        return self._records

    def entries(self, source: SourceRecord) -> Iterator[Entry]:
        """In order, but for further names of files whose first name was not chosen: they come last."""
        chosen = {*self._chosen[source.key]}
        within = tuple(f"{path}/" for path in chosen)
        names = chosen | self._above[source.key]
        original = self._originals[source.key]
        with closing(_Orphans()) as orphans:
            for entry in self._stored.entries(original):
                if entry.path not in names and not entry.path.startswith(within):
                    continue
                if entry.kind == "hardlink" and not (
                    entry.target in chosen or entry.target.startswith(within)
                ):
                    orphans.add(entry)
                else:
                    yield entry
            # Their content is read as the file comes by: from front to back, however many there are.
            for entry in self._stored.entries(original) if orphans.left else ():
                first = ""
                for path in orphans.names_of(entry) if entry.kind == "file" else ():
                    if first:
                        yield entry._replace(path=path, kind="hardlink", size=0, digest="", target=first)
                        continue
                    first = path
                    renamed = entry._replace(path=path)
                    self._renamed = renamed, entry
                    yield renamed
            if orphans.left:
                raise HostileBackup(f"{self.metadata.backup_id} has other names for files that it lacks")

    def read(self, entry: Entry) -> Pieces:
        if self._renamed is not None and self._renamed[0] is entry:
            entry = self._renamed[1]
        return self._stored.read(entry)

    def tensors(self, entry: Entry) -> Tensors | None:
        return self._stored.tensors(entry)

    def _summed(self, record: SourceRecord) -> SourceRecord:
        entries = size = 0
        for entry in self.entries(record):
            entries += 1
            size += entry.size if entry.kind == "file" else 0
        return replace(record, entries=entries, bytes=size)


def _above(record: SourceRecord, path: str, is_there: IsThere) -> Iterator[str]:
    """The directories above an entry that must be made, from its root down."""
    root = next((root for root in record.roots if path.startswith(f"{root}/")), None)
    if root is None:
        return
    end = len(root)
    while end >= 0:
        if not is_there(record, path[:end]):
            yield path[:end]
        end = path.find("/", end + 1)


class _Orphans:
    """Further names whose first one was not chosen. In a private temporary database, which spills to disk: a tree
    made by ``cp -al`` has as many as it has files."""

    def __init__(self) -> None:
        self.left = 0
        """Not given out yet."""
        self._table: sqlite3.Connection | None = None

    def add(self, entry: Entry) -> None:
        with _spilling():
            if self._table is None:
                self._table = sqlite3.connect("", isolation_level=None)
                self._table.execute("pragma journal_mode = off")
                self._table.execute(
                    "create table orphan (first, name, primary key (first, name)) without rowid"
                )
            row = (_encoded(entry.target), _encoded(entry.path))
            self._table.execute("insert into orphan values (?, ?)", row)
        self.left += 1

    def names_of(self, entry: Entry) -> Iterator[str]:
        assert self._table is not None
        with _spilling():
            rows = self._table.execute("select name from orphan where first = ?", (_encoded(entry.path),))
            for (name,) in rows:
                self.left -= 1
                yield name.decode("utf-8", "surrogatepass")

    def close(self) -> None:
        if self._table is not None:
            self._table.close()


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


@contextmanager
def _spilling() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise RestoreError(
            f"cannot keep the list of hard links in {tempfile.gettempdir()}: {error}",
            hint="Free some space there, or set SQLITE_TMPDIR to a directory with room.",
        ) from error
