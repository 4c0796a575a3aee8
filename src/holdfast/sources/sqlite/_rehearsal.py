"""A restored copy of a database, checked where nobody uses it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from holdfast.errors import CorruptBackup
from holdfast.sources.sqlite._connection import connect, find_damage
from holdfast.sources.sqlite._format import MAGIC
from holdfast.sources.sqlite._snapshot import NAME_LENGTH, TABLES, count_rows
from holdfast.text import harmless

_MOST_ROWS = 1 << 62


def check_copy(path: Path, name: str, moment: dict[str, Any]) -> int:
    """Checks a database's structure, its indexes, and that its tables have the rows that the backup says they had.

    `name` is for messages; `moment` is that of the source's record. Returns how many tables were compared. Raises
    CorruptBackup.
    """
    expected = _rows(moment.get("rows", {}), name)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CorruptBackup(f"database {name} is not a SQLite database once it is restored")
    try:
        # Nobody else has it, and it has no log yet.
        with closing(connect(path, "ro", immutable=True)) as database:
            damage = find_damage(database, deep=True)
            found = {} if damage is not None else count_rows(database)
    except sqlite3.Error as error:
        raise CorruptBackup(f"database {name} is damaged once it is restored: {error}") from error
    if damage is not None:
        raise CorruptBackup(f"database {name} is damaged once it is restored: {damage}")
    for table, number in expected.items():
        if table not in found:
            raise CorruptBackup(f"database {name} does not have the table {harmless(table)}, which was in it")
        if found[table] != number:
            raise CorruptBackup(
                f"database {name} has {found[table]} rows in {harmless(table)}, and not {number} as it had"
            )
    return len(expected)


def _rows(said: object, name: str) -> dict[str, int]:
    if not isinstance(said, dict) or len(said) > TABLES:
        raise CorruptBackup(f"the backup does not say in its own form how many rows database {name} had")
    for table, number in said.items():
        if not isinstance(table, str) or len(table) > NAME_LENGTH or type(number) is not int:
            raise CorruptBackup(f"the backup does not say in its own form how many rows database {name} had")
        if not 0 <= number < _MOST_ROWS:
            raise CorruptBackup(f"the backup says that database {name} had {number} rows in a table")
    return said
