"""The protocols of a source: how it is read for a backup, and how a restore puts it back.

A new kind of source is one module that implements `Source` and `Restorable` and, where its data is not
plain files, a `Swap` (see `holdfast.transaction`); and one subclass of ``tests/conformance/source.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from holdfast.events import Emit
from holdfast.model import Component, Entry, Finding, SourceRecord
from holdfast.transaction import Swap

Pieces = Generator["bytes | memoryview", "memoryview | None", None]
"""Content, in pieces of a few MiB at most. A piece is valid until the next one is asked for.

It may be sent memory for the next piece to be read into; a source that has the piece elsewhere passes it over."""


RACY_NS = 2_000_000_000
"""The coarsest clock of a file system that is met in practice, FAT's."""


class Method(enum.Enum):
    """How a source gives up its data."""

    FILES = "files"
    PHYSICAL_COPY = "physical copy"
    LOGICAL_DUMP = "logical dump"


@dataclass(slots=True)
class Content:
    """What a file or a dump holds, opened."""

    size: int | None
    """Bytes in all; None when that is known only at the end (a server's dump)."""
    data: bytes | None = None
    """All of it, when it is small."""
    stream: Pieces | None = None
    """All of it, when it is not. After the last piece it raises SourceChanged when what was read is not one
    moment of the source. Closing it frees what it holds."""
    changed: bool = False
    """Set, instead of raising SourceChanged, where the reader has settled for what it gets."""


class Item(Protocol):
    """An entry as it stands in the source, and the way to its content."""

    entry: Entry
    """As the directory shows it. Enough to tell whether it is unchanged; without digest and xattrs."""

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """The entry afresh, whole but for the digest, and its content (None for what has none).

        May be called again, after SourceChanged; with `settle` it is not raised any more: what is missing of the
        declared size is zeros, and `Content.changed` tells. Raises SourceChanged, SourceUnreadable, SourceMissing (it
        is gone since it was listed), DatabaseError.
        """
        ...


class Source(Protocol):
    """Something to back up."""

    component: Component
    name: str
    """Unique in its component. Lower-case letters, digits, ``-`` and ``_``."""
    method: ClassVar[Method]
    tolerates_change: bool
    """Whether a file that is still changing after three tries is a warning (else an error)."""

    def record(self) -> SourceRecord:
        """What the backup remembers of this source. Called after `scan` has ended."""
        ...

    def check(self) -> Iterator[Finding]:
        """Looks at all that a backup of it and a restore to it need, and changes nothing. Raises SourceError."""
        ...

    def scan(self, emit: Emit) -> Iterator[Item]:
        """Everything in it, ordered by `order_key`. Raises SourceMissing when the source is not there.

        What is passed over (sockets, fifos, devices) is told as Skipped.
        """
        ...


Read = Callable[[Entry], Iterator["bytes | memoryview"]]
"""Gives an entry's content out of a backup, and raises CorruptBackup after the last piece if it is not what
the manifest says."""


class Staging(Protocol):
    """Where a restore puts what is not live yet, so that a crashed one is sure to be cleaned up."""

    @property
    def run(self) -> str:
        """16 hex digits that no other restore has: for the names of scratch databases."""
        ...

    def place(self, beside: Path) -> Path:
        """Makes a private directory (0700) in the existing directory `beside`, on the same file system."""
        ...

    def register(self, swap: Swap) -> None:
        """Notes a swap in the journal before what it stages is made: a database on a server, say.

        When the restore fails before it is applied, or crashes, `revert` and `discard` are called on it. It may be
        noted again, when there is more to know; what is applied in the end is what `stage` returns.
        """
        ...


class Restorable(Protocol):
    """Where a source's data goes back to."""

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """Room that staging and keeping `total_bytes` of content take: an existing directory of each file
        system, and bytes."""
        ...

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """Fills private places beside the targets, or scratch databases, and checks them. Touches nothing live."""
        ...
