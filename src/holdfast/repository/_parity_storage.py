"""A storage whose objects have parity: it is written with them, goes with them, and is asked when they are damaged.

Reading does not ask parity first: an object that passes its own check is as it was, whatever a parity says that may
be of another version. `checked` reads, checks, and reads once more what was mended. Nothing is ever written by that.
Only JSON has no check worth the name, and there parity is the check.

Parity must never be that of an older object of the same name. So who replaces an object deletes the parity first, and
writes it anew last: a crash leaves an object without parity, which `holdfast repair` gives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self, TypeVar

from isal import isal_zlib

from holdfast.durable import explained
from holdfast.errors import CorruptBackup, CredentialError, StorageError
from holdfast.storage.base import OpenObject, Storage, Upload
from holdfast.streams import RandomAccess

SUFFIX: Final = ".parity"

T = TypeVar("T")


def parity_name(name: str) -> str:
    """The name of an object's parity."""
    return name + SUFFIX


def checked(source: RandomAccess, read: Callable[[], T]) -> T:
    """What `read` returns, which reads `source` and checks it; where that fails, once more with `source` mended.

    Raises what `read` raises. Where parity cannot help, a note says why.
    """
    try:
        return read()
    except (CorruptBackup, CredentialError, StorageError) as error:
        if not isinstance(source, GuardedObject) or not source.mend():
            if isinstance(source, GuardedObject) and source.refusal:
                error.add_note(source.refusal)
            raise
    found = read()
    source.tell()
    return found


def mend_first(source: RandomAccess) -> None:
    """For who takes an object as it is, and checks nothing: reads it mended, where its parity says that it is bad."""
    if isinstance(source, GuardedObject) and source.mend():
        source.tell()


class ParityStorage:
    """Implements `holdfast.storage.base.Storage` over another one. Several threads may use it."""

    def __init__(
        self, plain: Storage, *, writes: bool = False, told: Callable[[str], None] = lambda message: None
    ) -> None:
        """`writes`: whether what is stored gets parity. `told` hears of each object that was read mended."""
        self.plain = plain
        """The same without any of this: as it lies there."""
        self.writes = writes
        self._told = told
        self._known: set[str] = set()

    def has_parity(self, name: str) -> bool:
        return self.plain.exists(parity_name(name))

    def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> Upload:
        upload = self.plain.create(name, replace=replace, hashed=hashed)
        return _Upload(self, upload, name)

    def put(self, name: str, data: bytes) -> None:
        self._forget(name)
        self.plain.put(name, data)
        self._cover(name, isal_zlib.crc32(data))

    def open(self, name: str) -> GuardedObject:
        found = GuardedObject(self, name, self.plain.open(name))
        if name.endswith(".json"):
            mend_first(found)
        return found

    def get(self, name: str, *, limit: int) -> bytes:
        """As the protocol says, and compared with its parity, where it has one."""
        try:
            data = self.plain.get(name, limit=limit)
        except FileNotFoundError:
            raise
        except (OSError, StorageError):
            mended = self._mended(name, limit)
            if mended is None:
                raise
            return mended
        mended = self._mended(name, limit)
        return data if mended is None else mended

    def exists(self, name: str) -> bool:
        return self.plain.exists(name)

    def names(self, prefix: str) -> Iterator[str]:
        """As the protocol says; parity is not listed."""
        return (name for name in self.plain.names(prefix) if not name.endswith(SUFFIX))

    def delete(self, name: str) -> None:
        self._forget(name)
        self.plain.delete(name)

    def free_bytes(self) -> int | None:
        return self.plain.free_bytes()

    def lock(self, name: str, *, shared: bool = False) -> AbstractContextManager[None]:
        return self.plain.lock(name, shared=shared)

    def sweep(self) -> list[str]:
        return self.plain.sweep()

    def tell(self, name: str) -> None:
        """Says, once, that an object was read mended."""
        if name not in self._known:
            self._known.add(name)
            self._told(f"{name} is damaged, and was read mended: `holdfast repair` writes it anew")

    def _mended(self, name: str, limit: int) -> bytes | None:
        if not self.has_parity(name):
            return None
        try:
            found = GuardedObject(self, name, self.plain.open(name))
        except FileNotFoundError:
            return None
        with found:
            if not found.mend() or found.size > limit:
                return None
            found.tell()
            return found.read_at(0, limit)

    def _forget(self, name: str) -> None:
        if self.has_parity(name):
            self.plain.delete(parity_name(name))

    def _cover(self, name: str, crc: int) -> None:
        """Makes parity of an object that was written just now, whose bytes have this CRC-32."""
        if self.writes and (
            name.startswith(("packs/", "index/", "keys/")) or name.endswith((".manifest", ".json"))
        ):
            from holdfast.repository._parity import write_parity  # it takes long to load

            write_parity(self.plain, name, crc=crc)
        else:
            self._forget(name)


class GuardedObject:
    """Implements `holdfast.storage.base.OpenObject`: an object as it lies there, or, from `mend` on, mended."""

    def __init__(self, storage: ParityStorage, name: str, source: OpenObject) -> None:
        self.refusal = ""
        """Why parity cannot mend it, where it was asked to."""
        self._storage = storage
        self._name = name
        self._source = source
        self._mended: OpenObject | None = None
        self._mutex = threading.Lock()
        self._asked = False

    @property
    def size(self) -> int:
        return (self._mended or self._source).size

    def read_at(self, offset: int, length: int) -> bytes:
        """As the protocol says. Raises StorageError when it cannot be read."""
        with explained(f"cannot read {self._name}"):
            return (self._mended or self._source).read_at(offset, length)

    def mend(self) -> bool:
        """Compares it with its parity, and from here on reads what that mends. False where it mends nothing."""
        with self._mutex:
            if not self._asked:
                self._asked = True
                self._ask()
            return self._mended is not None

    def tell(self) -> None:
        self._storage.tell(self._name)

    def close(self) -> None:
        self._source.close()
        if self._mended is not None:
            self._mended.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self) -> None:
        try:
            if not self._storage.has_parity(self._name):
                return
            from holdfast.repository._parity import mend  # it takes long to load

            self._mended = mend(self._storage.plain, self._name)
        except FileNotFoundError:
            pass  # It was deleted meanwhile.
        except (CorruptBackup, StorageError) as error:
            self.refusal = str(error)


class _Upload:
    """Implements `holdfast.storage.base.Upload`, with parity made of the bytes that were written."""

    def __init__(self, storage: ParityStorage, upload: Upload, name: str) -> None:
        self.size = 0
        self._storage = storage
        self._upload = upload
        self._name = name
        self._crc = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        done = self._upload.write(data)
        if self._storage.writes:
            self._crc = isal_zlib.crc32(data, self._crc)
        self.size = self._upload.size
        return done

    def publish(self) -> str:
        """As the protocol says, and the parity durable too. When StorageError is raised for that, the object is
        there without."""
        # Also where nothing is replaced: somebody may have deleted an object by hand, and left its parity.
        self._storage._forget(self._name)
        checksum = self._upload.publish()
        self._storage._cover(self._name, self._crc)
        return checksum

    def abort(self) -> None:
        self._upload.abort()
