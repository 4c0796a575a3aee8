"""What differs between two backups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.model import Entry, SourceRecord, order_key
from holdfast.repository.base import StoredBackup

Change = Literal["added", "removed", "changed", "attributes"]


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that is not the same in both. `attributes`: its content is, and its mode, owner or time is not."""

    path: str
    change: Change
    before: Entry | None
    after: Entry | None


@dataclass(frozen=True, slots=True)
class RowDifference:
    """A table of a database whose number of rows is not the same."""

    database: str
    table: str
    before: int | None
    after: int | None


def diff(installation: Installation, one: str, other: str) -> Iterator[Difference | RowDifference]:
    """The differences from one backup to another, in the order of the sources and their entries. Nothing but the
    manifests is read. Raises HoldfastError of every kind."""
    first, before = locate(installation, one)
    second, after = locate(installation, other)
    with first.lent(), first.open(before) as old, second.lent(), second.open(after) as new:
        sources = {record.key: record for record in (*old.sources(), *new.sources())}
        for key in sorted(sources):
            yield from _of_source(old, new, key)


def _of_source(
    old: StoredBackup, new: StoredBackup, key: tuple[int, str]
) -> Iterator[Difference | RowDifference]:
    records = [next((known for known in stored.sources() if known.key == key), None) for stored in (old, new)]
    yield from _rows(*records)
    before, after = (
        iter(()) if record is None else stored.entries(record)
        for stored, record in zip((old, new), records, strict=True)
    )
    yield from _merge(before, after)


def _merge(before: Iterator[Entry], after: Iterator[Entry]) -> Iterator[Difference]:
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        old_key = order_key(old.path) if old is not None else None
        new_key = order_key(new.path) if new is not None else None
        if new_key is None or (old_key is not None and old_key < new_key):
            assert old is not None
            yield Difference(old.path, "removed", old, None)
            old = next(before, None)
        elif old_key is None or new_key < old_key:
            assert new is not None
            yield Difference(new.path, "added", None, new)
            new = next(after, None)
        else:
            assert old is not None
            assert new is not None
            if change := _change(old, new):
                yield Difference(new.path, change, old, new)
            old, new = next(before, None), next(after, None)


def _change(old: Entry, new: Entry) -> Change | None:
    if (old.kind, old.size, old.digest, old.target) != (new.kind, new.size, new.digest, new.target):
        return "changed"
    shown = [(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs) for entry in (old, new)]
    # A directory's time only says that something in it has changed, which is told anyway.
    if old.kind != "directory" and shown[0] != shown[1]:
        return "attributes"
    return "attributes" if shown[0][:3] != shown[1][:3] else None


def _rows(old: SourceRecord | None, new: SourceRecord | None) -> Iterator[RowDifference]:
    name = next(record.name for record in (old, new) if record is not None)
    before, after = (_tables(record) for record in (old, new))
    for table in sorted({*before, *after}):
        if before.get(table) != after.get(table):
            yield RowDifference(name, table, before.get(table), after.get(table))


def _tables(record: SourceRecord | None) -> dict[str, int]:
    found: Any = record.moment.get("rows") if record is not None else None
    tables: dict[str, int] = {}
    for name, rows in found.items() if isinstance(found, dict) else ():
        if isinstance(rows, int):
            tables[str(name)] = rows
        elif isinstance(rows, dict):  # by schema, then by table
            tables |= {f"{name}.{table}": each for table, each in rows.items() if isinstance(each, int)}
    return tables
