"""The protocol of a storage: a few verbs over named byte strings.

Names are relative, ``/``-separated, and made by the repository, never taken from a backup's content.
A new kind of storage is one module here and one subclass of ``tests/conformance/storage.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from holdfast.streams import RandomAccess


class OpenObject(RandomAccess, Protocol):
    """An object opened for reading."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Upload(Protocol):
    """An object being written. It has no name, and nobody sees it, until `publish`."""

    size: int
    """Bytes written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> int: ...

    def publish(self) -> str:
        """Makes the object durable and gives it its name, atomically. Returns the SHA-256, in hex, of what the
        storage gives back when asked for it; nothing when it was not to be hashed.

        Raises StorageError when the name is taken, or when what is read back differs from what was written.
        """
        ...

    def abort(self) -> None:
        """Forgets what was written. Does nothing after `publish`."""
        ...


class Storage(Protocol):
    """Where bytes are kept. Every method raises StorageError when the storage refuses."""

    def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> Upload:
        """Begins an object. Raises StorageError when the name is taken, unless it is to be replaced. Without `hashed`
        its `publish` tells no checksum, and compares all the same."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Writes a small object whole, atomically and durably, replacing what had the name."""
        ...

    def open(self, name: str) -> OpenObject:
        """Raises FileNotFoundError when there is none."""
        ...

    def get(self, name: str, *, limit: int) -> bytes:
        """A small object whole. Raises FileNotFoundError, and StorageError when it has more than `limit` bytes."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, prefix: str) -> Iterator[str]:
        """The names directly below a prefix that ends in ``/``, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Does nothing when there is none."""
        ...

    def free_bytes(self) -> int | None:
        """Room left; None where there is no such limit."""
        ...

    def lock(self, name: str, *, shared: bool = False) -> AbstractContextManager[None]:
        """Holds a lock that dies with this process. Raises LockHeld at once when another holds it."""
        ...

    def sweep(self) -> list[str]:
        """Deletes what uploads that died have left behind, and returns their names."""
        ...
