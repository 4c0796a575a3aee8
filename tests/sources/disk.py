"""Trees on the disk, as plain values to be compared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from holdfast.model import Entry
from holdfast.transaction import is_place_name


class Seen(NamedTuple):
    """A file, directory or link as it lies there."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes | str = b""
    """Of a file; for a link, what it says."""
    first: str = ""
    """For a further name of a file: the first one, in order of names."""


def look(directory: Path, *, private: bool = False) -> dict[str, Seen]:
    """All that is in a directory by relative path; private places only if asked for."""
    found: dict[str, Seen] = {}
    inodes: dict[tuple[int, int], str] = {}

    def visit(path: str, relative: str) -> None:
        for name in sorted(os.listdir(path)):
            if private or not is_place_name(name):
                here, inner = os.path.join(path, name), f"{relative}/{name}".lstrip("/")
                found[inner] = _see(here, inner, inodes)
                if found[inner].kind == "directory":
                    visit(here, inner)

    visit(str(directory), "")
    return found


def _see(path: str, relative: str, inodes: dict[tuple[int, int], str]) -> Seen:
    status = os.lstat(path)
    common = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
    if stat.S_ISDIR(status.st_mode):
        return Seen("directory", *common)
    if stat.S_ISLNK(status.st_mode):
        return Seen("symlink", *common, os.readlink(path))
    first = inodes.setdefault((status.st_dev, status.st_ino), relative)
    return Seen("file", *common, Path(path).read_bytes(), "" if first == relative else first)


def places(directory: Path) -> list[str]:
    """Private places anywhere in a directory, but in one another."""
    return sorted(path for path in look(directory, private=True) if is_place_name(path.rpartition("/")[2]))


def file(path: str, size: int = 0, **fields: object) -> Entry:
    return _entry(path, "file", size=size, **{"mode": 0o644, **fields})


def directory(path: str, **fields: object) -> Entry:
    return _entry(path, "directory", **{"mode": 0o755, **fields})


def symlink(path: str, target: str) -> Entry:
    return _entry(path, "symlink", mode=0o777, target=target)


def hardlink(path: str, target: str) -> Entry:
    return _entry(path, "hardlink", mode=0o644, target=target)


def _entry(path: str, kind: str, **fields: object) -> Entry:
    owner = {"uid": os.geteuid(), "gid": os.getegid(), "mtime_ns": 1_700_000_000_123_456_789}
    return Entry(path, kind, **{**owner, **fields})  # type: ignore[arg-type]  # plain values


class Backup:
    """Entries and their content, as a backup gives them."""

    def __init__(self, *items: Entry | tuple[Entry, bytes]) -> None:
        self._entries: list[Entry] = []
        self._content: dict[str, bytes] = {}
        for item in items:
            entry, content = item if isinstance(item, tuple) and not isinstance(item, Entry) else (item, b"")
            if entry.kind == "file" and not entry.size:
                entry = entry._replace(size=len(content))
            self._entries.append(entry)
            self._content[entry.path] = content

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries)

    def read(self, entry: Entry) -> Iterator[bytes | memoryview]:
        content = memoryview(self._content[entry.path])
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    def seen(self, *, names: dict[str, str]) -> dict[str, Seen]:
        """What `look` should see of it. `names`: for each root, the relative path at which it is."""
        return dict(sorted(self._expected(names)))

    def _expected(self, names: dict[str, str]) -> Iterable[tuple[str, Seen]]:
        at = {
            entry.path: names[root] + entry.path.removeprefix(root)
            for entry in self._entries
            for root in names
            if entry.path == root or entry.path.startswith(root + "/")
        }
        by_path = {entry.path: entry for entry in self._entries}
        groups: dict[str, list[str]] = {}
        for entry in self._entries:
            if entry.kind in ("file", "hardlink"):
                groups.setdefault(entry.target or entry.path, []).append(at[entry.path])
        for entry in self._entries:
            common = (entry.mode, entry.uid, entry.gid, entry.mtime_ns)
            if entry.kind == "symlink":
                yield at[entry.path], Seen("symlink", *common, entry.target)
            elif entry.kind == "directory":
                yield at[entry.path], Seen("directory", *common)
            else:
                original = by_path[entry.target or entry.path]
                common = (original.mode, original.uid, original.gid, original.mtime_ns)
                first = min(groups[original.path], key=lambda path: path.split("/"))
                seen = Seen("file", *common, self._content[original.path])
                yield at[entry.path], seen._replace(first="" if first == at[entry.path] else first)
