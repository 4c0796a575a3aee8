"""Trees of entries as plain values: what a source would give a run, and what comes back out of a repository."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from holdfast.errors import SourceChanged
from holdfast.model import BackupMetadata, BackupType, Component, Entry, SourceRecord, is_unchanged, order_key
from holdfast.repository.base import SHA256, Repository, Run, RunPlan, StoredBackup

SMALL = 256 << 10
"""Bytes up to which a source gives a file's content whole, and not as a stream."""
_PIECE = 100_000


class Node(NamedTuple):
    """An entry and its content."""

    entry: Entry
    content: bytes | None = None
    sized: bool = True
    """Whether its size is known before its end, as a file's is and a dump's is not."""


Tree = dict[str, Node]
"""The entries of one source, by path."""
Trees = dict[tuple[Component, str], Tree]
"""The sources of a backup, by component and name."""


@dataclass
class Clock:
    """Stands still until it is moved."""

    now: datetime = datetime(2024, 1, 1, 2, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float = 3600) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Content:
    """Implements `holdfast.repository.base.Stored`."""

    size: int | None
    data: bytes | None
    stream: Generator[bytes | memoryview, None, None] | None


def content_of(node: Node) -> Content | None:
    """A node's content as its source would give it."""
    if node.content is None:
        return None
    if node.sized and len(node.content) <= SMALL:
        return Content(len(node.content), node.content, None)
    return Content(len(node.content) if node.sized else None, None, pieces(node.content))


def pieces(data: bytes) -> Generator[bytes | memoryview, None, None]:
    """Content in pieces that have nothing to do with anybody's blocks."""
    for start in range(0, len(data), _PIECE):
        yield memoryview(data)[start : start + _PIECE]


def changing(data: bytes, size: int | None) -> Content:
    """Content that turns out to have changed while it was read, after `data`; declared as `size` bytes."""

    def stream() -> Generator[bytes | memoryview, None, None]:
        yield from pieces(data)
        raise SourceChanged("it changed while it was read")

    return Content(size, None, stream())


def file(path: str, content: bytes, *, sized: bool = True, **fields: Any) -> Node:
    """A file. Its times tell one content from another, as a careful service's would."""
    stamp = int.from_bytes(hashlib.sha256(content).digest()[:6], "big")
    fields = {"mode": 0o644, "mtime_ns": stamp, "ctime_ns": stamp, "inode": 7} | fields
    return Node(Entry(path, "file", len(content) if sized else 0, **fields), content, sized)


def directory(path: str, **fields: Any) -> Node:
    return Node(Entry(path, "directory", mode=0o755, **fields))


def symlink(path: str, target: str) -> Node:
    return Node(Entry(path, "symlink", mode=0o777, target=target))


def hardlink(path: str, target: str) -> Node:
    return Node(Entry(path, "hardlink", mode=0o644, target=target))


def tree(*nodes: Node) -> Tree:
    return {node.entry.path: node for node in nodes}


def models(*nodes: Node) -> Trees:
    """A backup of models alone."""
    return {("models", "main"): tree(directory("files/models"), *nodes)}


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return hashlib.shake_256(b"%d" % seed).digest(size)


def store(
    repository: Repository,
    trees: Trees,
    *,
    parent: BackupMetadata | None = None,
    type_: BackupType | None = None,
    **plan: Any,
) -> BackupMetadata:
    """Makes a backup as a job does: what looks unchanged is kept, everything else added."""
    with repository.begin(plan_of(trees, parent=parent, type_=type_, **plan)) as run:
        for key in sorted(trees, key=lambda key: SourceRecord(*key, "files").key):
            store_source(run, key, trees[key])
        return run.commit(warnings=0, duration_seconds=1.5)


def plan_of(
    trees: Trees, *, parent: BackupMetadata | None = None, type_: BackupType | None = None, **plan: Any
) -> RunPlan:
    ordered = sorted(trees, key=lambda key: SourceRecord(*key, "files").key)
    components = tuple(dict.fromkeys(component for component, _ in ordered))
    return RunPlan(type_ or ("incremental" if parent else "full"), components, parent, **plan)


def store_source(run: Run[Any], key: tuple[Component, str], nodes: Tree) -> None:
    run.begin_source(*key)
    for path in sorted(nodes, key=order_key):
        node = nodes[path]
        known = run.known(path)
        if known is not None and is_unchanged(known.entry, node.entry):
            run.keep(known)
        else:
            run.add(node.entry, content_of(node), known)
    run.end_source(record(key, nodes))


def record(key: tuple[Component, str], nodes: Tree) -> SourceRecord:
    """What a source says of itself, once it was read."""
    return SourceRecord(*key, "files", roots=(min(nodes, key=order_key),), moment={"entries": len(nodes)})


def as_stored(node: Node) -> Node:
    """A node as it comes back: with size and digest."""
    if node.content is None:
        return Node(node.entry)
    digest = hashlib.sha256(node.content).hexdigest()
    return Node(node.entry._replace(size=len(node.content), digest=digest), node.content)


def expected(trees: Mapping[tuple[Component, str], Tree]) -> Trees:
    """What `read_back` gives of a backup of `trees`, in its order."""
    ordered = sorted(trees, key=lambda key: SourceRecord(*key, "files").key)
    return {
        key: {path: as_stored(trees[key][path]) for path in sorted(trees[key], key=order_key)}
        for key in ordered
    }


def read_back(repository: Repository, metadata: BackupMetadata) -> Trees:
    """All that a backup holds, read once, in its order."""
    with repository.open(metadata) as stored:
        return {(source.component, source.name): dict(_nodes(stored, source)) for source in stored.sources()}


def _nodes(stored: StoredBackup, source: SourceRecord) -> Iterator[tuple[str, Node]]:
    for entry in stored.entries(source):
        content = None
        if entry.kind == "file":
            content = b"".join(bytes(piece) for piece in stored.read(entry))
        yield entry.path, Node(entry, content)


def assert_holds(repository: Repository, metadata: BackupMetadata, trees: Trees) -> None:
    """The backup is these trees: every entry, in order, with everything about it, and nothing else."""
    found, wanted = read_back(repository, metadata), expected(trees)
    with repository.open(metadata) as stored:
        digests = stored.digests
    assert list(found) == list(wanted)
    by_content: dict[bytes, str] = {}
    for key, nodes in wanted.items():
        assert list(found[key]) == list(nodes)
        for path, node in nodes.items():
            entry = found[key][path].entry
            # Not compared by assert alone: nobody wants to see megabytes.
            assert found[key][path].content == node.content, f"{path} has another content"
            if digests != SHA256 and node.content is not None:
                assert by_content.setdefault(node.content, entry.digest) == entry.digest
                entry = entry._replace(digest=node.entry.digest)
            assert entry == node.entry
    assert len(set(by_content.values())) == len(by_content), "two contents have one digest"
