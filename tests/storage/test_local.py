from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.storage import MIB, NAME, StorageSuite, assert_locked, content_of, started, store
from holdfast.errors import HoldfastError, LockHeld, StorageError
from holdfast.storage.local import FlatStorage, LocalStorage


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "above" / "backups"


@pytest.fixture
def storage(directory: Path) -> LocalStorage:
    return LocalStorage(directory)


class TestLocalStorage(StorageSuite):
    """A directory of the local file system."""


@pytest.fixture
def open_umask() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


@pytest.mark.usefixtures("open_umask")
def test_files_and_directories_are_private_whatever_the_umask_is(
    storage: LocalStorage, directory: Path
) -> None:
    store(storage, NAME, b"content")
    storage.put("full/full_20240101_020000.metadata.json", b"{}")
    with storage.lock("backup"), started(storage, "full/other") as upload:
        upload.write(b"half")
        made = [directory, *directory.rglob("*")]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {name for name, mode in modes.items() if mode not in (0o600, 0o700)} == set()
    assert {path.name for path in made if path.is_dir()} == {"backups", "full", "temp"}
    assert all((modes[path.name] == 0o700) == path.is_dir() for path in made)


def test_nothing_is_made_before_something_is_written(storage: LocalStorage, directory: Path) -> None:
    assert not storage.exists(NAME)
    assert storage.sweep() == []
    assert storage.free_bytes()
    assert not directory.exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "full/../../outside", "full/\0", ".."])
def test_a_name_that_leads_outside_is_refused(storage: LocalStorage, directory: Path, name: str) -> None:
    asked: list[Callable[[], object]] = [
        lambda: storage.create(name),
        lambda: storage.put(name, b""),
        lambda: storage.open(name),
        lambda: storage.exists(name),
        lambda: storage.delete(name),
        lambda: list(storage.names(name)),
    ]
    for ask in asked:
        with pytest.raises(StorageError):
            ask()
    assert not (directory.parent / "outside").exists()


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("fault", [_corrupt, _shorten, _lengthen])
def test_what_does_not_read_back_is_never_published(
    storage: LocalStorage, directory: Path, fault: Callable[[Path], None]
) -> None:
    with started(storage, NAME) as upload:
        upload.write(bytes(MIB // 2))
        (partial,) = (directory / "temp").glob("*.partial")
        fault(partial)
        with pytest.raises(StorageError, match="read back"):
            upload.publish()
    assert not storage.exists(NAME)
    assert storage.sweep() == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may become larger: a disk that is full in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_disk_refuses_is_an_error_and_leaves_nothing(storage: LocalStorage) -> None:
    store(storage, NAME, b"old")
    with started(storage, NAME, replace=True) as upload, largest_file(MIB):
        upload.write(bytes(MIB))
        with pytest.raises(StorageError):
            upload.write(b"one byte more")
        with pytest.raises(StorageError):
            storage.put("full/large", bytes(2 * MIB))
    assert content_of(storage, NAME) == b"old"
    assert list(storage.names("full/")) == [NAME]
    assert storage.sweep() == []


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = LocalStorage(tmp_path / "file" / "backups")
    asked: list[Callable[[], object]] = [
        lambda: storage.create(NAME),
        lambda: storage.put(NAME, b""),
        lambda: storage.lock("backup").__enter__(),
    ]
    for ask in asked:
        with pytest.raises(HoldfastError):
            ask()


def test_a_lock_dies_with_its_process(storage: LocalStorage, directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from holdfast.storage.local import LocalStorage\n"
        "with LocalStorage(Path(sys.argv[1])).lock('backup'): print('held', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert_locked(storage, "backup")
        holder.kill()
    with storage.lock("backup"):
        pass


def test_a_held_lock_says_where(storage: LocalStorage, directory: Path) -> None:
    with storage.lock("backup"), pytest.raises(LockHeld, match=str(directory)), storage.lock("backup"):
        pass


def test_a_flat_storage_finds_files_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "full_20240101_020000.tar.gz").write_bytes(b"content")
    assert content_of(FlatStorage(tmp_path), NAME) == b"content"


def test_a_flat_storage_takes_another_name_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "renamed.tgz").write_bytes(b"content")
    storage = FlatStorage(tmp_path, {NAME: "renamed.tgz"})
    assert content_of(storage, NAME) == b"content"
    assert not FlatStorage(tmp_path).exists(NAME)
