"""Which names of a source are further names of a file that it already has."""

from __future__ import annotations

import os
import sqlite3
import tempfile

from holdfast.errors import SourceError


class HardLinks:
    """The first path of every inode that has several names. Kept in a private temporary database, which spills
    to disk: a tree made by ``cp -al`` has as many as it has files."""

    def __init__(self) -> None:
        self._table: sqlite3.Connection | None = None

    def first(self, status: os.stat_result, path: str) -> str | None:
        """The path that came before with the same inode; None when `path` is the first. Raises SourceError
        when there is no room."""
        inode = f"{status.st_dev}:{status.st_ino}"  # text: either may exceed SQLite's integers
        try:
            table = self._opened()
            row = table.execute("select path from first where inode = ?", (inode,)).fetchone()
            if row is None:
                table.execute("insert into first values (?, ?)", (inode, os.fsencode(path)))
        except sqlite3.Error as error:
            raise SourceError(
                f"cannot keep the list of hard links in {tempfile.gettempdir()}: {error}",
                hint="Free some space there, or set SQLITE_TMPDIR to a directory with room.",
            ) from error
        return None if row is None else os.fsdecode(row[0])

    def forget(self, path: str) -> None:
        """`path` turned out not to be that inode: whichever name comes next is the first."""
        if self._table is not None:
            self._table.execute("delete from first where path = ?", (os.fsencode(path),))

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _opened(self) -> sqlite3.Connection:
        if self._table is None:
            # Items may be opened by another thread than the one that scans, and may call `forget`.
            self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._table.execute("pragma journal_mode = off")
            self._table.execute("create table first (inode text primary key, path blob) without rowid")
        return self._table
