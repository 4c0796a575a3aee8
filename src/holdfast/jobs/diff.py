"""What differs between two backups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from blake3 import blake3

from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.model import COMPONENTS, Entry, SourceRecord, order_key
from holdfast.repository.base import Pieces, StoredBackup, Tensor, Tensors

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


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor of a model file that is not the same in both. It follows the `Difference` of its file. `form`: another
    dtype or shape; `changed`: another content alone."""

    path: str
    """The file's."""
    tensor: str
    change: Literal["added", "removed", "changed", "form"]
    before: Tensor | None
    after: Tensor | None


Found = Difference | RowDifference | TensorDifference

IsSame = Callable[[Entry, Entry], bool]


def diff(installation: Installation, one: str, other: str) -> Iterator[Found]:
    """The differences from one backup to another, in the order of the sources and their entries.

    Nothing but the manifests is read, and of models that have changed the headers, where both backups are of a format
    that tells tensors. Of two formats, whose digests cannot be compared, files of the same size are read. Raises
    HoldfastError of every kind.
    """
    first, before = locate(installation, one)
    second, after = locate(installation, other)
    with first.lent(), first.open(before) as old, second.lent(), second.open(after) as new:
        sources = {record.key: record for record in (*old.sources(), *new.sources())}
        for key in sorted(sources):
            yield from _of_source(old, new, key)


def _of_source(old: StoredBackup, new: StoredBackup, key: tuple[int, str]) -> Iterator[Found]:
    records = [next((known for known in stored.sources() if known.key == key), None) for stored in (old, new)]
    yield from _rows(*records)
    before, after = (
        iter(()) if record is None else stored.entries(record)
        for stored, record in zip((old, new), records, strict=True)
    )
    for found in _merge(before, after, partial(_is_same, old, new)):
        yield found
        if COMPONENTS[key[0]] == "models" and found.change == "changed":
            yield from _tensors(old, new, found)


def _merge(before: Iterator[Entry], after: Iterator[Entry], is_same: IsSame) -> Iterator[Difference]:
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
            if change := _change(old, new, is_same):
                yield Difference(new.path, change, old, new)
            old, new = next(before, None), next(after, None)


def _is_same(before: StoredBackup, after: StoredBackup, old: Entry, new: Entry) -> bool:
    """Whether two files of the same size have the same content."""
    if before.digests == after.digests:
        return old.digest == new.digest
    return _hashed(before.read(old)) == _hashed(after.read(new))


def _hashed(pieces: Pieces) -> bytes:
    digest = blake3()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _change(old: Entry, new: Entry, is_same: IsSame) -> Change | None:
    if (old.kind, old.size, old.target) != (new.kind, new.size, new.target):
        return "changed"
    if old.kind == "file" and not is_same(old, new):
        return "changed"
    shown = [(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs) for entry in (old, new)]
    # A directory's time only says that something in it has changed, which is told anyway.
    if old.kind != "directory" and shown[0] != shown[1]:
        return "attributes"
    return "attributes" if shown[0][:3] != shown[1][:3] else None


def _tensors(old: StoredBackup, new: StoredBackup, file: Difference) -> Iterator[TensorDifference]:
    sides: list[Tensors] = []
    for stored, entry in ((old, file.before), (new, file.after)):
        known = stored.tensors(entry) if entry is not None and entry.kind == "file" else None
        if known is None or (sides and sides[0].key != known.key):
            return
        sides.append(known)
    before, after = ({tensor.name: tensor for tensor in side.tensors} for side in sides)
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        if one is None or other is None:
            yield TensorDifference(file.path, name, "added" if one is None else "removed", one, other)
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            yield TensorDifference(file.path, name, "form", one, other)
        else:
            yield TensorDifference(file.path, name, "changed", one, other)


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
