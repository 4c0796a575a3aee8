"""A directory of the local file system as a storage.

Uploads are written to ``temp/``, fsynced, read back, and linked to their name: a name appears whole or not
at all, and never replaces another. Files are 0600, directories 0700.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from isal import isal_zlib

from holdfast.durable import explained, file_lock, free_bytes, make_private, replace_file, sync_directory
from holdfast.errors import StorageError

_TEMP = "temp"
_READ_BACK = 1 << 20
_FLUSH = 128 << 20


class LocalStorage:
    """Implements `holdfast.storage.base.Storage`. The directory is made when first written to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> LocalUpload:
        target = self._path(name)
        if target.exists() and not replace:
            raise StorageError(f"{target} already exists")
        with explained(f"cannot write to {self.directory}"):
            self._make(target.parent)
            self._make(self.directory / _TEMP)
            return LocalUpload(self._partial(target), target, replace=replace, hashed=hashed)

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        with explained(f"cannot write {target}"):
            self._make(target.parent)
            self._make(self.directory / _TEMP)
            replace_file(target, data, temporary=self._partial(target))

    def open(self, name: str) -> LocalFile:
        path = self._path(name)
        try:
            return LocalFile(path)
        except FileNotFoundError:
            if path.is_symlink():
                raise StorageError(f"{path} is a link to nowhere") from None
            raise

    def get(self, name: str, *, limit: int) -> bytes:
        with self.open(name) as file:
            if file.size > limit:
                raise StorageError(
                    f"{self._path(name)} has {file.size} bytes, more than the {limit} it may have"
                )
            return file.read_at(0, limit)

    def exists(self, name: str) -> bool:
        return self._path(name).exists()

    def names(self, prefix: str) -> Iterator[str]:
        try:
            found = sorted(os.listdir(self._path(prefix)))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot read {self._path(prefix)}: {error.strerror}") from error
        for name in found:
            yield prefix + name

    def delete(self, name: str) -> None:
        path = self._path(name)
        with explained(f"cannot delete {path}"):
            path.unlink(missing_ok=True)
            if path.parent.exists():
                sync_directory(path.parent)

    def free_bytes(self) -> int | None:
        return free_bytes(self.directory)

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        if shared and not os.access(self.directory, os.W_OK):
            yield  # A read-only medium: nobody can delete what is being read.
            return
        with explained(f"cannot write to {self.directory}"):
            self._make(self.directory / _TEMP)
        with file_lock(
            self.directory / _TEMP / f"{name}.lock", shared=shared, what=f"{self.directory} ({name})"
        ):
            yield

    def sweep(self) -> list[str]:
        temp = self.directory / _TEMP
        left = sorted((*temp.glob("*.partial"), *temp.glob("run-*.lock"))) if temp.is_dir() else []
        for path in left:
            path.unlink(missing_ok=True)
        return [path.name for path in left if path.suffix == ".partial"]

    def _path(self, name: str) -> Path:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise StorageError(f"{name!r} is not a name in a storage")
        return self.directory / name

    def _partial(self, target: Path) -> Path:
        return self.directory / _TEMP / f"{target.name}.{secrets.token_hex(4)}.partial"

    def _make(self, directory: Path) -> None:
        make_private(directory, self.directory)


class FlatStorage(LocalStorage):
    """A directory in which archives lie side by side, whatever directories their names speak of."""

    def __init__(self, directory: Path, aliases: Mapping[str, str] | None = None) -> None:
        """`aliases`: names in the storage that stand for files of another name."""
        super().__init__(directory)
        self._aliases = aliases or {}

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Nothing expires here, and nothing of ours is left beside other people's files."""
        yield

    def _path(self, name: str) -> Path:
        return self.directory / os.path.basename(self._aliases.get(name, name))


class LocalUpload:
    """Implements `holdfast.storage.base.Upload`.

    The checksum is that of the bytes as they are read back, a step behind the writing, so that nothing is left to
    do at the end; that they are the bytes which were written, their CRC-32 tells.
    """

    def __init__(self, partial: Path, target: Path, *, replace: bool = False, hashed: bool = True) -> None:
        self.size = 0
        self._hashed = hashed
        self._partial = partial
        self._target = target
        self._replace = replace
        self._fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._written = 0
        self._seen = 0
        self._seen_size = 0
        self._checksum = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ_BACK))
        # Writes to the disk what was given to the system, so that little is left for the fsync at the end.
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="upload-flush")
        self._flushes: list[Future[None]] = []
        self._flushed = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        self._written = isal_zlib.crc32(view, self._written)
        done = 0
        with explained(f"cannot write {self._partial}"):
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], self.size + done)
            self.size += done
            while self.size - self._seen_size >= _READ_BACK:
                self._read_back()
            if self.size - self._flushed >= _FLUSH:
                self._flushed = self.size
                self._flushes.append(self._flusher.submit(os.fsync, self._fd))
        return done

    def publish(self) -> str:
        try:
            with explained(f"cannot write {self._target}"):
                # The system tells a failed write to one fsync, and to no later one.
                for flush in self._flushes:
                    flush.result()
                os.fsync(self._fd)
                while self._read_back():
                    pass
                self._compare()
                if self._replace:
                    self._partial.replace(self._target)
                else:
                    # A link, unlike a rename, fails when the name is taken.
                    os.link(self._partial, self._target)
                    self._partial.unlink()
                sync_directory(self._target.parent)
        finally:
            self.abort()
        return self._checksum.hexdigest() if self._hashed else ""

    def abort(self) -> None:
        if self._fd >= 0:
            self._flusher.shutdown(cancel_futures=True)
            os.close(self._fd)
            self._fd = -1
            self._partial.unlink(missing_ok=True)

    def _read_back(self) -> int:
        count = os.preadv(self._fd, [self._buffer], self._seen_size)
        piece = self._buffer[:count]
        if self._hashed:
            self._checksum.update(piece)
        self._seen = isal_zlib.crc32(piece, self._seen)
        self._seen_size += count
        return count

    def _compare(self) -> None:
        if self._seen_size != self.size or self._seen != self._written:
            raise StorageError(
                f"{self._target.name}: what was read back ({self._seen_size} bytes) is not what was written "
                f"({self.size} bytes)",
                hint="Suspect the disk or the memory of this machine before you trust either again.",
            )


class LocalFile:
    """Implements `holdfast.storage.base.OpenObject`."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, and StorageError for what is no file or may not be read."""
        try:
            # A fifo put there by somebody else must not make us wait for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise StorageError(f"{path} is no regular file")
        self.size = status.st_size

    def read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        done = len(data)
        while done < length and (data := os.pread(self._fd, length - done, offset + done)):
            pieces.append(data)
            done += len(data)
        return b"".join(pieces)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
