"""Proof that an archive holds what its manifest says, for us and for tar alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from holdfast.errors import CorruptBackup
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._manifest import Row
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
    if len(levels) == 1:
        return
    top = len(levels) - 1
    for source in stored.sources():
        for entry in stored.entries(source):
            if entry.kind == "file" and {extent.level for extent in stored.extents(entry)} != {top}:
                for piece in stored.read(entry):
                    progress(len(piece))


def _verify_members(archive: OpenArchive, progress: Callable[[int], None]) -> None:
    tar = TarStream(archive.raw.iter_at(0, archive.raw_size))
    expected = _members_expected(archive)
    row = next(expected, None)
    while not tar.at_end(archive.raw_size):
        member = tar.advance()
        while row is not None and member is not None and _is_in_pieces(row) and not _is_piece(member, row):
            row = next(expected, None)
        if member is None or row is None:
            raise CorruptBackup(f"{archive.name}: the tar holds what the manifest does not list")
        if _is_in_pieces(row):
            continue
        _compare(archive.name, member, row)
        if row.entry.kind != "file":
            row = next(expected, None)
        elif row.offset == tar.position:
            digest = hashlib.sha256()
            for piece in tar.content():
                digest.update(piece)
                progress(len(piece))
            if digest.hexdigest() != row.entry.digest:
                raise CorruptBackup(f"{archive.name}: {row.entry.path} is not what the manifest says")
            row = next(expected, None)
        # Else the file changed while it was read, and a later member of the same name stands for it.
    while row is not None and _is_in_pieces(row):
        row = next(expected, None)
    if row is not None:
        raise CorruptBackup(f"{archive.name}: the tar lacks {row.entry.path}, which the manifest lists")


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
    return number.isdigit() and name in (row.entry.path, f"changed/{row.entry.path}")


def _compare(archive: str, member: Member, row: Row) -> None:
    entry = row.entry
    says = (entry.path, entry.kind, entry.target)
    # A file that changed while it was read may have had another size the first time.
    if (member.path, member.kind, member.target) != says:
        raise CorruptBackup(
            f"{archive}: the tar holds {member.kind} {member.path} where the manifest says {entry.kind} {entry.path}"
        )
