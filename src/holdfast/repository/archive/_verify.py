"""Proof that an archive holds what its manifest says, for us and for tar alike."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from isal import isal_zlib

from holdfast.errors import CorruptBackup
from holdfast.model import Entry, order_key
from holdfast.repository._manifest import Row
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._gzip_reader import stream
from holdfast.repository.archive._open import OpenArchive
from holdfast.repository.archive._tar import Member
from holdfast.repository.archive._tarstream import TarStream


def verify_content(
    stored: StoredArchive, levels: Sequence[OpenArchive], progress: Callable[[int], None]
) -> None:
    """Reads the last archive of a chain from front to back: every member is the entry that the manifest says,
    with its content. Then every file of the backup that rests, in part or whole, on the archives before it.

    Raises CorruptBackup.
    """
    _verify_members(levels[-1], progress)
    top = len(levels) - 1
    for source in stored.sources():
        with closing(_Links()) as links:
            for entry in stored.entries(source):
                if entry.kind == "hardlink":
                    links.add(entry)
                extents = stored.extents(entry)
                if entry.kind == "file" and [extent.level for extent in extents] != [top]:
                    for piece in stored.read(entry):
                        progress(len(piece))
            if (path := links.broken(stored.entries(source))) is not None:
                raise CorruptBackup(
                    f"{stored.metadata.backup_id}: {path} is a hard link to what is no file before it"
                )


class _Links:
    """The hard links of a source, in a table that spills to disk."""

    def __init__(self) -> None:
        self._any = False
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("CREATE TABLE link (path BLOB, target BLOB)")
        self._table.execute("CREATE INDEX by_target ON link (target)")
        self._table.execute("BEGIN")

    def add(self, entry: Entry) -> None:
        self._any = True
        self._table.execute("INSERT INTO link VALUES (?, ?)", (_key(entry.path), _key(entry.target)))

    def broken(self, entries: Iterator[Entry]) -> str | None:
        """The path of one that does not share a file among `entries` that comes before it; None if all do."""
        for entry in entries if self._any else ():
            if entry.kind == "file":
                self._table.execute("DELETE FROM link WHERE target = ?1 AND path > ?1", (_key(entry.path),))
        left = self._table.execute("SELECT path FROM link LIMIT 1").fetchone()
        return None if left is None else str(left[0].decode("utf-8", "surrogatepass")).replace("\0", "/")

    def close(self) -> None:
        self._table.close()


def _key(path: str) -> bytes:
    """Bytes that sort as entries do, also for names that are not UTF-8."""
    return order_key(path).encode("utf-8", "surrogatepass")


def _verify_members(archive: OpenArchive, progress: Callable[[int], None]) -> None:
    raw = _Summed(archive.raw.iter_at(0, archive.raw_size))
    tar = TarStream(raw, name=archive.name)
    expected = _Expected(archive)
    while not tar.at_end(archive.raw_size):
        member = tar.advance()
        if member is None:
            raise CorruptBackup(f"{archive.name}: the tar ends before the manifest says so")
        if expected.passes_as_piece(member, tar.position):
            continue
        row = expected.row
        if row is None:
            raise CorruptBackup(
                f"{archive.name}: the tar holds {member.path}, which the manifest does not list"
            )
        _compare(archive.name, member, row, is_content=row.offset == tar.position)
        if row.entry.kind != "file":
            expected.advance()
        elif row.offset == tar.position:
            digest = hashlib.sha256()
            for piece in tar.content():
                digest.update(piece)
                progress(len(piece))
            if digest.hexdigest() != row.entry.digest:
                raise CorruptBackup(f"{archive.name}: {row.entry.path} is not what the manifest says")
            expected.advance()
        # Else the file changed while it was read, and a later member of the same name stands for it.
    while expected.row is not None and _is_in_pieces(expected.row):
        expected.advance()
    if expected.row is not None:
        raise CorruptBackup(
            f"{archive.name}: the tar lacks {expected.row.entry.path}, which the manifest lists"
        )
    for _ in raw:  # The last member's padding.
        pass
    tail = _Summed(stream(archive.source, archive.manifest_offset, name=archive.name), raw.crc, raw.size)
    for _ in tail:
        pass
    # RFC 1952: CRC-32 and size, modulo 2**32, of what the only member holds, at the end of the file.
    if archive.source.read_at(archive.source.size - 8, 8) != struct.pack(
        "<LL", tail.crc, tail.size & 0xFFFFFFFF
    ):
        raise CorruptBackup(f"{archive.name}: the gzip trailer does not fit what the file holds")


class _Summed:
    """Pieces, with the CRC-32 and the size of those that went by."""

    def __init__(self, pieces: Iterator[bytes | memoryview], crc: int = 0, size: int = 0) -> None:
        self._pieces = pieces
        self.crc = crc
        self.size = size

    def __iter__(self) -> _Summed:
        return self

    def __next__(self) -> bytes | memoryview:
        piece = next(self._pieces)
        self.crc = isal_zlib.crc32(piece, self.crc)
        self.size += len(piece)
        return piece


class _Expected:
    """The entries that must have members, as a cursor that looks one ahead."""

    def __init__(self, archive: OpenArchive) -> None:
        self._rows = _members_expected(archive)
        self.row = next(self._rows, None)
        self._following = next(self._rows, None)

    def advance(self) -> None:
        self.row, self._following = self._following, next(self._rows, None)

    def passes_as_piece(self, member: Member, position: int) -> bool:
        """Whether a member is a piece of the row; what is in pieces and ends here is left behind.

        A rotated log may be called as a piece would be: an entry that lies just there comes first.
        """
        while self.row is not None and _is_in_pieces(self.row):
            after = self._following
            is_next = after is not None and (after.entry.path, after.offset) == (member.path, position)
            if not is_next and _is_piece(member, self.row):
                return True
            self.advance()
        return False


def _members_expected(archive: OpenArchive) -> Iterator[Row]:
    for record in sorted(archive.sources, key=lambda record: record.key):
        rows, _ = archive.rows((record.component, record.name))
        while rows.row is not None:
            if rows.row.entry.kind != "deleted":
                yield rows.row
            rows.advance()


def _is_in_pieces(row: Row) -> bool:
    return row.entry.kind == "file" and row.offset is None


def _is_piece(member: Member, row: Row) -> bool:
    name, _, number = member.path.rpartition(".")
    return (
        member.kind == "file" and number.isdigit() and name in (row.entry.path, f"changed/{row.entry.path}")
    )


def _compare(archive: str, member: Member, row: Row, *, is_content: bool) -> None:
    """Raises CorruptBackup unless `tar` would make of a member what a restore makes of a row."""
    entry = row.entry
    says: list[str | int] = [entry.path, entry.kind, entry.target]
    told: list[str | int] = [member.path, member.kind, member.target]
    # A file that changed while it was read may have been another one the first time.
    if entry.kind != "file" or is_content:
        says += [entry.size if entry.kind == "file" else 0, entry.mode, entry.uid, entry.gid]
        told += [member.size, member.mode, member.uid, member.gid]
    if says != told:
        raise CorruptBackup(
            f"{archive}: the tar holds {member.kind} {member.path} where the manifest says {entry.kind} {entry.path}"
            ", or gives it other attributes"
        )
