"""What every `Storage` promises. A new one is tested by a subclass that gives `storage`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from holdfast.errors import LockHeld, StorageError
from holdfast.storage.base import Storage, Upload

MIB = 1 << 20
NAME = "full/full_20240101_020000.tar.gz"


class StorageSuite:
    """Subclasses define a fixture ``storage``: an empty one."""

    def test_an_object_appears_when_it_is_published_and_not_before(self, storage: Storage) -> None:
        with started(storage, NAME) as upload:
            upload.write(b"content")
            assert not storage.exists(NAME)
            assert list(storage.names("full/")) == []
            with pytest.raises(FileNotFoundError):
                storage.open(NAME)
            upload.publish()
        assert storage.exists(NAME)
        assert list(storage.names("full/")) == [NAME]
        assert content_of(storage, NAME) == b"content"

    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 2 * MIB, 3 * MIB + 17])
    def test_an_object_holds_what_was_written_and_publishing_tells_its_checksum(
        self, storage: Storage, size: int
    ) -> None:
        draw = random.Random(size)
        content = draw.randbytes(size)
        with started(storage, NAME) as upload:
            done = 0
            while done < size:
                step = draw.randrange(1, MIB)
                assert upload.write(content[done : done + step]) == len(content[done : done + step])
                done += len(content[done : done + step])
                assert upload.size == done
            assert upload.publish() == hashlib.sha256(content).hexdigest()
            assert upload.size == size
        assert content_of(storage, NAME) == content

    def test_an_object_that_is_not_to_be_hashed_is_compared_all_the_same(self, storage: Storage) -> None:
        upload = storage.create(NAME, hashed=False)
        upload.write(b"content")
        assert upload.publish() == ""
        assert content_of(storage, NAME) == b"content"

    def test_whatever_holds_bytes_can_be_written(self, storage: Storage) -> None:
        with started(storage, NAME) as upload:
            upload.write(b"ab")
            upload.write(bytearray(b"cd"))
            upload.write(memoryview(b"xefx")[1:3])
            upload.publish()
        assert content_of(storage, NAME) == b"abcdef"

    def test_a_taken_name_is_refused(self, storage: Storage) -> None:
        store(storage, NAME, b"first")
        with pytest.raises(StorageError):
            storage.create(NAME)
        assert content_of(storage, NAME) == b"first"

    def test_of_two_uploads_to_one_name_the_first_to_be_published_wins(self, storage: Storage) -> None:
        with started(storage, NAME) as one, started(storage, NAME) as two:
            one.write(b"one")
            two.write(b"two, and longer")
            two.publish()
            with pytest.raises(StorageError):
                one.publish()
        assert content_of(storage, NAME) == b"two, and longer"
        assert storage.sweep() == []

    def test_an_object_is_replaced_at_once_where_that_is_asked_for(self, storage: Storage) -> None:
        store(storage, NAME, b"old")
        with started(storage, NAME, replace=True) as upload:
            upload.write(b"new")
            assert content_of(storage, NAME) == b"old"
            assert upload.publish() == hashlib.sha256(b"new").hexdigest()
        assert content_of(storage, NAME) == b"new"

    def test_replacing_needs_nothing_to_replace(self, storage: Storage) -> None:
        with started(storage, NAME, replace=True) as upload:
            upload.publish()
        assert content_of(storage, NAME) == b""

    def test_an_aborted_upload_leaves_nothing(self, storage: Storage) -> None:
        upload = storage.create(NAME)
        upload.write(b"content")
        upload.abort()
        upload.abort()
        assert not storage.exists(NAME)
        assert storage.sweep() == []
        store(storage, NAME, b"another")

    def test_an_abort_after_publishing_does_nothing(self, storage: Storage) -> None:
        upload = storage.create(NAME)
        upload.write(b"content")
        upload.publish()
        upload.abort()
        assert content_of(storage, NAME) == b"content"

    def test_put_writes_and_replaces_whole_objects(self, storage: Storage) -> None:
        storage.put(NAME, b"a long first content")
        storage.put(NAME, b"short")
        assert storage.get(NAME, limit=100) == b"short"
        assert list(storage.names("full/")) == [NAME]

    def test_get_gives_all_of_an_object_and_nothing_above_its_limit(self, storage: Storage) -> None:
        storage.put(NAME, b"12345")
        assert storage.get(NAME, limit=5) == b"12345"
        with pytest.raises(StorageError):
            storage.get(NAME, limit=4)

    def test_what_is_not_there_is_file_not_found(self, storage: Storage) -> None:
        with pytest.raises(FileNotFoundError):
            storage.get(NAME, limit=100)
        with pytest.raises(FileNotFoundError):
            storage.open(NAME)
        assert not storage.exists(NAME)

    def test_names_are_sorted_and_only_those_of_the_prefix(self, storage: Storage) -> None:
        assert list(storage.names("full/")) == []
        names = ["full/c", "full/a", "full/a.b", "full/b"]
        for name in names:
            storage.put(name, b"")
        storage.put("incremental/a", b"")
        assert list(storage.names("full/")) == sorted(names)
        assert list(storage.names("incremental/")) == ["incremental/a"]

    def test_what_is_deleted_is_gone_and_deleting_nothing_is_no_error(self, storage: Storage) -> None:
        store(storage, NAME, b"content")
        storage.put("full/other", b"")
        storage.delete(NAME)
        storage.delete(NAME)
        storage.delete("never/there")
        assert not storage.exists(NAME)
        assert list(storage.names("full/")) == ["full/other"]
        store(storage, NAME, b"again")

    def test_a_range_is_read_whole_and_shorter_only_at_the_end(self, storage: Storage) -> None:
        content = random.Random(1).randbytes(300_000)
        store(storage, NAME, content)
        with storage.open(NAME) as file:
            assert file.size == len(content)
            assert file.read_at(0, 1) == content[:1]
            assert file.read_at(70_000, 200_000) == content[70_000:270_000]
            assert file.read_at(299_999, 10) == content[-1:]
            assert file.read_at(300_000, 10) == b""
            assert file.read_at(1 << 40, 10) == b""
            assert file.read_at(5, 0) == b""

    def test_several_threads_may_read_one_object(self, storage: Storage) -> None:
        content = random.Random(2).randbytes(MIB)
        store(storage, NAME, content)
        ranges = [(start, start % 5000 + 1) for start in range(0, MIB, 10_007)]
        with storage.open(NAME) as file, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda one: file.read_at(*one), ranges))
        assert found == [content[start : start + length] for start, length in ranges]

    def test_an_open_object_outlives_its_name(self, storage: Storage) -> None:
        store(storage, NAME, b"content")
        with storage.open(NAME) as file:
            storage.delete(NAME)
            assert file.read_at(0, 100) == b"content"

    def test_a_lock_keeps_everyone_else_out_at_once(self, storage: Storage) -> None:
        with storage.lock("backup"):
            assert_locked(storage, "backup")
            assert_locked(storage, "backup", shared=True)
        with storage.lock("backup"):
            pass

    def test_shared_locks_go_together_and_keep_an_exclusive_one_out(self, storage: Storage) -> None:
        store(
            storage, NAME, b"content"
        )  # where there is nothing to read, nothing needs to be kept from going
        with storage.lock("expire", shared=True), storage.lock("expire", shared=True):
            assert_locked(storage, "expire")
        with storage.lock("expire"):
            assert_locked(storage, "expire", shared=True)

    def test_locks_of_other_names_are_other_locks(self, storage: Storage) -> None:
        with storage.lock("backup"), storage.lock("expire"):
            assert_locked(storage, "backup")

    def test_a_lock_is_let_go_by_an_error(self, storage: Storage) -> None:
        with pytest.raises(RuntimeError), storage.lock("backup"):
            raise RuntimeError
        with storage.lock("backup"):
            pass

    def test_sweeping_removes_what_dead_uploads_left_and_nothing_else(self, storage: Storage) -> None:
        store(storage, NAME, b"content")
        with ExitStack() as stack, storage.lock("backup"):
            for name in ("full/dead", NAME):
                upload = stack.enter_context(started(storage, name, replace=True))
                upload.write(b"half of it")
            assert len(storage.sweep()) == 2
            assert storage.sweep() == []
            assert_locked(storage, "backup")
        assert list(storage.names("full/")) == [NAME]
        assert content_of(storage, NAME) == b"content"

    def test_an_empty_storage_can_be_asked_anything(self, storage: Storage) -> None:
        assert storage.sweep() == []
        assert list(storage.names("full/")) == []
        assert not storage.exists(NAME)
        storage.delete(NAME)
        room = storage.free_bytes()
        assert room is None or room > 0


@contextmanager
def started(storage: Storage, name: str, *, replace: bool = False) -> Iterator[Upload]:
    """An upload that leaves nothing behind, published or not."""
    upload = storage.create(name, replace=replace)
    try:
        yield upload
    finally:
        upload.abort()


def store(storage: Storage, name: str, content: bytes) -> None:
    with started(storage, name) as upload:
        upload.write(content)
        upload.publish()


def content_of(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read_at(0, file.size + 1)


def assert_locked(storage: Storage, name: str, *, shared: bool = False) -> None:
    with pytest.raises(LockHeld), storage.lock(name, shared=shared):
        pass
