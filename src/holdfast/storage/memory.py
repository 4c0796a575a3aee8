"""A storage in memory: for tests, and as the plainest statement of what the protocol means.

A test makes it fail, lie or die through `Faults`. Some stores list late and lose answers; all of them fill up, and
every process can be killed. An instance stands for a process at work; the medium below it outlives it.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from holdfast.errors import LockHeld, StorageError
from holdfast.storage._faults import Crashed, DataVerb, Due, Faults, Verb

__all__ = ["Crashed", "DataVerb", "Faults", "MemoryObject", "MemoryStorage", "MemoryUpload", "Verb"]


class MemoryStorage:
    """Implements `holdfast.storage.base.Storage`. Several threads may use it."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self._medium = _Medium()
        self._alive = True

    def beside(self, faults: Faults | None = None) -> MemoryStorage:
        """The same storage as another process sees it, which has locks and faults of its own."""
        other = MemoryStorage(faults)
        other._medium = self._medium
        return other

    def survivor(self, faults: Faults | None = None) -> MemoryStorage:
        """What the next process finds: kills this one, if no fault has done so yet.

        What was published, put or deleted is so. Locks are free. Of uploads that were under way there is what
        `sweep` finds (unless `Faults.lose_uploads` took that too).
        """
        with self._medium.mutex:
            self._die()
        return self.beside(faults)

    def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> MemoryUpload:
        _check(name)
        with self._call("create", name):
            if name in self._medium.objects and not replace:
                raise StorageError(f"{name} already exists")
            return MemoryUpload(self, self._medium, name, replace=replace, hashed=hashed)

    def put(self, name: str, data: bytes) -> None:
        _check(name)
        with self._call("put", name) as due:
            self._medium.write(name, due.distorted(bytes(data)), self.faults.listing_delay)

    def open(self, name: str) -> MemoryObject:
        _check(name)
        with self._call("open", name):
            return MemoryObject(self, name, self._medium.read(name))

    def get(self, name: str, *, limit: int) -> bytes:
        _check(name)
        with self._call("get", name) as due:
            content = self._medium.read(name)
            if len(content) > limit:
                raise StorageError(f"{name} has {len(content)} bytes, more than the {limit} it may have")
            return due.distorted(content)

    def exists(self, name: str) -> bool:
        _check(name)
        with self._call("exists", name):
            return name in self._medium.objects

    def names(self, prefix: str) -> Iterator[str]:
        """Of an object that lies deeper, the part of its name that is directly below: ``packs/ab``."""
        if prefix:
            _check(prefix.removesuffix("/"))
            if not prefix.endswith("/"):
                raise StorageError(f"{prefix!r} is not a prefix of names in a storage")
        with self._call("names", prefix):
            below = (name[len(prefix) :] for name in self._medium.listing() if name.startswith(prefix))
            return iter(sorted({prefix + rest.split("/")[0] for rest in below}))

    def delete(self, name: str) -> None:
        _check(name)
        with self._call("delete", name):
            self._medium.delete(name, self.faults.listing_delay)

    def free_bytes(self) -> int | None:
        with self._call("free_bytes", "the memory"):
            return None

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        _check(name)
        hold = _Hold(self, name, shared)
        with self._call("lock", name):
            others = [other for other in self._medium.locks if other.name == name]
            if others and not (shared and all(other.shared for other in others)):
                raise LockHeld(f"another run is at work in the memory ({name})")
            self._medium.locks.append(hold)
        try:
            yield
        finally:
            with self._medium.mutex:
                if hold in self._medium.locks:
                    self._medium.locks.remove(hold)

    def sweep(self) -> list[str]:
        with self._call("sweep", "the memory"):
            left = sorted(self._medium.partials)
            self._medium.partials.clear()
            return left

    @contextmanager
    def _call(self, verb: Verb, name: str) -> Iterator[Due]:
        """One call, at which what is planned goes wrong. No other call comes between its steps."""
        with self._medium.mutex:
            if not self._alive:
                raise Crashed(f"{verb} {name}: this process is dead")
            due = self.faults.due(verb)
            if due.loses_uploads:
                self._medium.partials.clear()
            self._strike(due, verb, name, done=False)
            try:
                yield due
            except Exception:
                # A call that was refused is over too, and the process may die then.
                if due.crashes(done=True):
                    self._strike(due, verb, name, done=True)
                raise
            self._strike(due, verb, name, done=True)

    def _strike(self, due: Due, verb: Verb, name: str, *, done: bool) -> None:
        if due.crashes(done=done):
            self._die()
            raise Crashed(f"{verb} {name}: killed")
        error = due.error(done=done)
        if error is not None:
            raise error(f"{verb} {name}: the memory refused")

    def _die(self) -> None:
        self._alive = False
        self._medium.locks[:] = [hold for hold in self._medium.locks if hold.owner is not self]


class MemoryUpload:
    """Implements `holdfast.storage.base.Upload`."""

    def __init__(
        self, storage: MemoryStorage, medium: _Medium, name: str, *, replace: bool, hashed: bool
    ) -> None:
        self.size = 0
        self._hashed = hashed
        self._storage = storage
        self._medium = medium
        self._name = name
        self._replace = replace
        self._partial = medium.begin(name)
        self._written = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        with self._storage._call("write", self._name) as due:
            self._content().extend(due.distorted(bytes(view)))
            self._written = zlib.crc32(view, self._written)
            self.size += len(view)
        return len(view)

    def publish(self) -> str:
        try:
            with self._storage._call("publish", self._name):
                content = bytes(self._content())
                if len(content) != self.size or zlib.crc32(content) != self._written:
                    raise StorageError(
                        f"{self._name}: what was read back ({len(content)} bytes) is not what was written "
                        f"({self.size} bytes)"
                    )
                if self._name in self._medium.objects and not self._replace:
                    raise StorageError(f"{self._name} already exists")
                del self._medium.partials[self._partial]
                self._medium.write(self._name, content, self._storage.faults.listing_delay)
        finally:
            self.abort()
        return hashlib.sha256(content).hexdigest() if self._hashed else ""

    def abort(self) -> None:
        with self._medium.mutex:
            if self._storage._alive:  # the dead clean nothing up
                self._medium.partials.pop(self._partial, None)

    def _content(self) -> bytearray:
        content = self._medium.partials.get(self._partial)
        if content is None:
            raise StorageError(f"{self._name}: the upload has ended, or what was written is lost")
        return content


class MemoryObject:
    """Implements `holdfast.storage.base.OpenObject`."""

    def __init__(self, storage: MemoryStorage, name: str, content: bytes) -> None:
        self.size = len(content)
        self._storage = storage
        self._name = name
        self._content: bytes | None = content

    def read_at(self, offset: int, length: int) -> bytes:
        with self._storage._call("read_at", self._name) as due:
            if self._content is None:
                raise ValueError(f"{self._name} is closed")
            if offset < 0 or length < 0:
                raise ValueError("an offset or a length is negative")
            return due.distorted(self._content[offset : offset + length])

    def close(self) -> None:
        self._content = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, eq=False)
class _Hold:
    """A lock that somebody holds."""

    owner: MemoryStorage
    name: str
    shared: bool


@dataclass(frozen=True, slots=True)
class _Change:
    """A name that was given or deleted, and the number of the listing that is the first to show it."""

    due: int
    name: str
    present: bool


class _Medium:
    """What outlives the processes that use it. Used with the mutex held."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.objects: dict[str, bytes] = {}
        self.partials: dict[str, bytearray] = {}
        self.locks: list[_Hold] = []
        self._begun = 0
        self._listings = 0
        self._listed: set[str] = set()
        self._changes: list[_Change] = []

    def begin(self, name: str) -> str:
        """Makes room for an upload, and says what `sweep` would call it."""
        self._begun += 1
        partial = f"{name.split('/')[-1]}.{self._begun}.partial"
        self.partials[partial] = bytearray()
        return partial

    def read(self, name: str) -> bytes:
        if name not in self.objects:
            raise FileNotFoundError(f"there is no {name}")
        return self.objects[name]

    def write(self, name: str, content: bytes, delay: int) -> None:
        self.objects[name] = content
        self._changes.append(_Change(self._listings + delay, name, True))

    def delete(self, name: str, delay: int) -> None:
        if self.objects.pop(name, None) is not None:
            self._changes.append(_Change(self._listings + delay, name, False))

    def listing(self) -> set[str]:
        waiting: list[_Change] = []
        for change in self._changes:
            if change.due > self._listings:
                waiting.append(change)
                continue
            # What is shown is never taken back by an older change that was to come later.
            waiting = [other for other in waiting if other.name != change.name]
            (self._listed.add if change.present else self._listed.discard)(change.name)
        self._changes = waiting
        self._listings += 1
        return self._listed


def _check(name: str) -> None:
    """Raises StorageError for what is no name."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{name!r} is not a name in a storage")
