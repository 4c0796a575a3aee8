from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from conformance.storage import NAME, StorageSuite, assert_locked, content_of, started, store
from holdfast.errors import HoldfastError, NoSpace, StorageError
from holdfast.storage.base import Storage
from holdfast.storage.memory import Crashed, DataVerb, Faults, MemoryStorage, Verb


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


class TestMemoryStorage(StorageSuite):
    """What a process keeps in memory."""


class TestMemoryStorageBesideAnother(StorageSuite):
    """A second process at the storage of a first."""

    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage().beside()


def read(storage: Storage) -> bytes:
    with storage.open(NAME) as file:
        return file.read_at(0, 100)


def hold(storage: Storage) -> None:
    with storage.lock("backup"):
        pass


ASKED: dict[Verb, Callable[[MemoryStorage], object]] = {
    "create": lambda storage: store(storage, "full/new", b"new"),
    "write": lambda storage: store(storage, "full/new", b"new"),
    "publish": lambda storage: store(storage, "full/new", b"new"),
    "put": lambda storage: storage.put("full/new", b"new"),
    "open": read,
    "read_at": read,
    "get": lambda storage: storage.get(NAME, limit=100),
    "exists": lambda storage: storage.exists(NAME),
    "names": lambda storage: list(storage.names("full/")),
    "delete": lambda storage: storage.delete(NAME),
    "free_bytes": lambda storage: storage.free_bytes(),
    "lock": hold,
    "sweep": lambda storage: storage.sweep(),
}
"""A way to each verb, where NAME is there."""

CHANGES: list[Verb] = ["publish", "put", "delete"]


def state(storage: Storage) -> dict[str, bytes]:
    return {name: content_of(storage, name) for name in storage.names("full/")}


def after(verb: Verb) -> dict[str, bytes]:
    """What the storage holds once the verb is done."""
    return {} if verb == "delete" else {NAME: b"content", "full/new": b"new"}


@pytest.mark.parametrize("verb", ASKED)
@pytest.mark.parametrize("error", [StorageError, NoSpace])
def test_the_nth_call_of_a_verb_fails_and_does_nothing(
    storage: MemoryStorage, verb: Verb, error: type[StorageError]
) -> None:
    other = storage.beside()  # what it does counts for no fault of ours

    def set_back() -> None:
        other.put(NAME, b"content")
        other.delete("full/new")

    set_back()
    storage.faults.fail(verb, error, at=2)
    ASKED[verb](storage)
    set_back()
    with pytest.raises(error):
        ASKED[verb](storage)
    assert state(other) == {NAME: b"content"}
    assert other.sweep() == []
    hold(other)
    ASKED[verb](storage)


def test_a_fault_lasts_as_many_calls_as_it_is_told(storage: MemoryStorage) -> None:
    storage.faults.fail("put", at=2, times=2)
    refused = []
    for number in range(5):
        try:
            storage.put(f"full/{number}", b"")
        except StorageError:
            refused.append(number)
    assert refused == [1, 2]


def test_a_full_disk_stays_full_until_it_is_not(storage: MemoryStorage) -> None:
    storage.faults.fail("write", NoSpace, times=None)
    for _ in range(3):
        with pytest.raises(NoSpace):
            store(storage, NAME, b"content")
    storage.faults.clear()
    store(storage, NAME, b"content")
    assert storage.faults.calls["write"] == 4


@pytest.mark.parametrize("verb", CHANGES)
def test_what_is_done_may_be_reported_as_failed(storage: MemoryStorage, verb: Verb) -> None:
    store(storage, NAME, b"content")
    storage.faults.fail(verb, done=True)
    with pytest.raises(StorageError):
        ASKED[verb](storage)
    assert state(storage) == after(verb)
    assert storage.sweep() == []


def test_a_lock_whose_answer_is_lost_is_held_until_its_process_dies(storage: MemoryStorage) -> None:
    storage.faults.fail("lock", done=True)
    with pytest.raises(StorageError):
        hold(storage)
    assert_locked(storage, "backup")
    hold(storage.survivor())


@pytest.mark.parametrize("verb", ["read_at", "get"])
def test_what_is_read_may_be_short_or_damaged_and_is_whole_the_next_time(
    storage: MemoryStorage, verb: Verb
) -> None:
    store(storage, NAME, b"content")
    assert verb in ("read_at", "get")
    data_verb: DataVerb = "read_at" if verb == "read_at" else "get"
    storage.faults.truncate(data_verb, to=3, at=1)
    storage.faults.flip(data_verb, bit=8, at=2)
    storage.faults.flip(data_verb, bit=7 * 8 + 1, at=3)
    assert [ASKED[verb](storage) for _ in range(4)] == [b"con", b"cnntent", b"aontent", b"content"]


def test_a_flip_of_nothing_is_nothing(storage: MemoryStorage) -> None:
    storage.put(NAME, b"")
    storage.faults.flip("get")
    assert storage.get(NAME, limit=0) == b""


@pytest.mark.parametrize(
    "damage", [lambda f: f.flip("write", at=2), lambda f: f.truncate("write", to=1, at=2)]
)
def test_what_is_damaged_on_its_way_is_found_when_it_is_published(
    storage: MemoryStorage, damage: Callable[[Faults], None]
) -> None:
    damage(storage.faults)
    with started(storage, NAME) as upload:
        assert upload.write(b"some ") == 5
        assert upload.write(b"content") == 7
        assert upload.size == 12
        with pytest.raises(StorageError, match="read back"):
            upload.publish()
    assert state(storage) == {}
    assert storage.sweep() == []


def test_a_disk_may_lie_about_what_was_put(storage: MemoryStorage) -> None:
    storage.faults.flip("put", bit=0)
    storage.put(NAME, b"content")
    assert storage.get(NAME, limit=100) == b"bontent"


@pytest.mark.parametrize("verb", ["write", "publish"])
def test_an_upload_that_is_lost_is_never_published(storage: MemoryStorage, verb: Verb) -> None:
    store(storage, NAME, b"content")
    storage.faults.lose_uploads(verb, at=2)
    with started(storage, "full/lost") as upload, started(storage, "full/other") as other:
        upload.write(b"some")
        if verb == "publish":
            store(storage, "full/first", b"")
        with pytest.raises(StorageError, match="lost"):
            upload.write(b"more") if verb == "write" else upload.publish()
        with pytest.raises(StorageError, match="lost"):
            other.publish()
        assert storage.sweep() == []
    assert not storage.exists("full/lost")
    assert not storage.exists("full/other")
    assert storage.exists(NAME)


def test_an_upload_that_was_swept_away_is_never_published(storage: MemoryStorage) -> None:
    with started(storage, NAME) as upload:
        upload.write(b"content")
        assert len(storage.beside().sweep()) == 1
        with pytest.raises(StorageError):
            upload.publish()
    assert not storage.exists(NAME)


def test_an_upload_that_has_ended_takes_nothing_more(storage: MemoryStorage) -> None:
    with started(storage, NAME) as upload:
        upload.write(b"content")
        upload.publish()
        with pytest.raises(StorageError):
            upload.write(b"more")
        with pytest.raises(StorageError):
            upload.publish()
    assert content_of(storage, NAME) == b"content"


def test_listings_show_changes_late_and_in_the_end(storage: MemoryStorage) -> None:
    def listed() -> list[str]:
        return list(storage.names("full/"))

    storage.put("full/a", b"")
    storage.faults.listing_delay = 2
    storage.put("full/b", b"there")
    storage.delete("full/a")
    assert storage.get("full/b", limit=10) == b"there"
    assert not storage.exists("full/a")
    assert [listed() for _ in range(3)] == [["full/a"], ["full/a"], ["full/b"]]
    store(storage, "full/c", b"")
    assert [listed() for _ in range(3)] == [["full/b"], ["full/b"], ["full/b", "full/c"]]


def test_a_late_change_never_takes_back_a_newer_one(storage: MemoryStorage) -> None:
    storage.faults.listing_delay = 3
    storage.put("full/a", b"")
    storage.faults.listing_delay = 0
    storage.delete("full/a")
    assert [list(storage.names("full/")) for _ in range(5)] == [[]] * 5
    storage.put("full/a", b"")
    assert list(storage.names("full/")) == ["full/a"]


def test_what_lies_deeper_is_listed_once_by_its_next_step(storage: MemoryStorage) -> None:
    for name in ("packs/ab/1", "packs/ab/2", "packs/cd/1", "packs/plain", "repository.json"):
        storage.put(name, b"")
    assert list(storage.names("packs/")) == ["packs/ab", "packs/cd", "packs/plain"]
    assert list(storage.names("packs/ab/")) == ["packs/ab/1", "packs/ab/2"]
    assert list(storage.names("")) == ["packs", "repository.json"]


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("done", [False, True])
def test_a_crash_leaves_a_change_undone_or_done(storage: MemoryStorage, verb: Verb, done: bool) -> None:
    store(storage, NAME, b"content")
    storage.faults.crash(verb, done=done)
    with pytest.raises(Crashed):
        ASKED[verb](storage)
    survivor = storage.survivor()
    assert state(survivor) == (after(verb) if done else {NAME: b"content"})
    assert len(survivor.sweep()) == (verb == "publish" and not done)
    assert state(survivor) == (after(verb) if done else {NAME: b"content"})


@pytest.mark.parametrize("verb", ASKED)
@pytest.mark.parametrize("done", [False, True])
def test_a_crash_comes_at_any_verb(storage: MemoryStorage, verb: Verb, done: bool) -> None:
    store(storage, NAME, b"content")
    storage.faults.crash(verb, done=done)
    with pytest.raises(Crashed):
        ASKED[verb](storage)
    hold(storage.survivor())


def test_a_process_may_die_as_it_is_refused(storage: MemoryStorage) -> None:
    storage.faults.crash("open", done=True)
    with pytest.raises(Crashed):
        storage.open(NAME)


def test_the_dead_do_nothing_more(storage: MemoryStorage) -> None:
    store(storage, NAME, b"content")
    with ExitStack() as stack:
        upload = stack.enter_context(started(storage, "full/half"))
        upload.write(b"half")
        file = stack.enter_context(storage.open(NAME))
        stack.enter_context(storage.lock("backup"))
        storage.faults.crash("free_bytes")
        with pytest.raises(Crashed):
            storage.free_bytes()
        storage.faults.clear()
        asked: list[Callable[[], object]] = [
            *(partial(ask, storage) for ask in ASKED.values()),
            lambda: upload.write(b"more"),
            upload.publish,
            lambda: file.read_at(0, 1),
        ]
        for ask in asked:
            with pytest.raises(Crashed):
                ask()
        upload.abort()
    survivor = storage.survivor()
    assert state(survivor) == {NAME: b"content"}
    assert len(survivor.sweep()) == 1


def test_no_handler_of_errors_stops_a_crash(storage: MemoryStorage) -> None:
    storage.faults.crash("put")

    def carry_on() -> None:
        try:
            storage.put(NAME, b"")
        except Exception as error:
            raise AssertionError("it went on") from error

    with pytest.raises(Crashed):
        carry_on()


def test_a_crash_may_take_what_was_not_published(storage: MemoryStorage) -> None:
    with started(storage, NAME) as upload:
        upload.write(b"content")
        storage.faults.lose_uploads()
        storage.faults.crash()
        with pytest.raises(Crashed):
            upload.publish()
    assert storage.survivor().sweep() == []


def test_a_work_can_be_crashed_at_each_of_its_calls() -> None:
    def work(storage: MemoryStorage) -> None:
        with storage.lock("backup"):
            store(storage, "full/data", b"data")
            storage.put("full/commit", b"")
            storage.delete("full/data.old")

    whole = MemoryStorage()
    work(whole)
    assert whole.faults.total == 6
    seen = []
    for call in range(1, whole.faults.total + 1):
        storage = MemoryStorage()
        storage.faults.crash(at=call)
        with pytest.raises(Crashed):
            work(storage)
        survivor = storage.survivor()
        seen.append([name.removeprefix("full/") for name in survivor.names("full/")])
        assert len(survivor.sweep()) == (call in (3, 4))
    assert seen == [[], [], [], [], ["data"], ["commit", "data"]]


def test_locks_keep_other_processes_out_and_die_with_their_own(storage: MemoryStorage) -> None:
    other = storage.beside()
    with storage.lock("backup"), storage.lock("gc", shared=True):
        assert_locked(other, "backup")
        assert_locked(other, "gc")
        with other.lock("gc", shared=True):
            assert_locked(storage, "gc")
            survivor = storage.survivor()
            hold(survivor)
            assert_locked(survivor, "gc")
        with survivor.lock("gc"), survivor.lock("backup"):
            pass


def test_a_lock_that_died_is_not_let_go_a_second_time(storage: MemoryStorage) -> None:
    with ExitStack() as stack:
        stack.enter_context(storage.lock("backup"))
        survivor = storage.survivor()
        with survivor.lock("backup"):
            stack.close()
            assert_locked(survivor.beside(), "backup")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "full/../../outside", "full/\0", "..", "", "full//a", "./a", "full/"],
)
def test_what_is_no_name_is_refused(storage: MemoryStorage, name: str) -> None:
    asked: list[Callable[[], object]] = [
        lambda: storage.create(name),
        lambda: storage.put(name, b""),
        lambda: storage.open(name),
        lambda: storage.get(name, limit=1),
        lambda: storage.exists(name),
        lambda: storage.delete(name),
        lambda: storage.lock(name).__enter__(),
    ]
    for ask in asked:
        with pytest.raises(HoldfastError):
            ask()


@pytest.mark.parametrize("prefix", ["full", "../", "/", "/etc/", "full//"])
def test_what_is_no_prefix_is_refused(storage: MemoryStorage, prefix: str) -> None:
    with pytest.raises(StorageError):
        storage.names(prefix)


def test_a_closed_object_is_not_read(storage: MemoryStorage) -> None:
    store(storage, NAME, b"content")
    with storage.open(NAME) as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        file.read_at(0, 1)


def test_of_many_threads_one_gets_the_name_and_one_the_fault(storage: MemoryStorage) -> None:
    def publish(number: int) -> str:
        try:
            store(storage, NAME, b"%d" % number)
        except StorageError:
            return "refused"
        return "published"

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            assert sorted(pool.map(publish, range(8))) == ["published"] + ["refused"] * 7
            storage.delete(NAME)
        storage.faults.fail("put", at=17)
        failed = [pool.submit(storage.put, f"full/{number}", b"") for number in range(40)]
        assert sum(future.exception() is not None for future in failed) == 1
    assert storage.sweep() == []
    assert len(list(storage.names("full/"))) == 39


@pytest.mark.parametrize(
    "plan",
    [
        lambda f: f.fail("put", at=0),
        lambda f: f.crash(at=-1),
        lambda f: f.flip("get", times=0),
        lambda f: f.truncate("get", to=-1),
    ],
)
def test_a_fault_that_can_never_strike_is_refused(plan: Callable[[Faults], None]) -> None:
    with pytest.raises(ValueError):
        plan(Faults())
