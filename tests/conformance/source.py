"""What every kind of source promises, and what every target of a restore does. See `holdfast.sources.base`.

Subclass `SourceConformance` in a test module, and say how such a source is made, changed and looked at.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from conformance.places import Places
from holdfast.clock import Clock, system_clock
from holdfast.errors import CorruptBackup, SourceError, SourceMissing
from holdfast.events import ignore
from holdfast.model import COMPONENTS, Entry, is_unchanged, order_key
from holdfast.sources.base import Content, Item, Restorable, Source
from holdfast.transaction import Kinds, Swap

SECRET = "correct horse battery staple"
"""Stands in the data of every source."""

Backup = list[tuple[Entry, bytes]]


def long_after() -> datetime:
    """A clock by which everything in a test is old."""
    return datetime(2100, 1, 1, tzinfo=UTC)


class SourceConformance(ABC):
    """The suite. Methods without a docstring of their own are tests."""

    recognizes_unchanged: ClassVar[bool] = True
    """Whether what did not change is known without reading it. A server's dump is always made afresh."""

    @abstractmethod
    def kinds(self, root: Path) -> Kinds:
        """The kinds of swaps that the target makes."""

    @abstractmethod
    def make(self, root: Path) -> None:
        """Makes some data below an existing, empty directory, with `SECRET` in it."""

    @abstractmethod
    def change(self, root: Path) -> None:
        """Changes the data: as little as this kind of source lets one change."""

    @abstractmethod
    def remove(self, root: Path) -> None:
        """Removes the data, as if its disk were not mounted."""

    @abstractmethod
    def source(self, root: Path, clock: Clock) -> Source:
        """The source of the data below `root`, which is the service root."""

    @abstractmethod
    def target(self, root: Path) -> Restorable:
        """The target that a backup of `source` is restored to."""

    @abstractmethod
    def state(self, root: Path) -> object:
        """All that a restore must bring back, for comparison. For data that is not there: None."""

    def left_over(self, root: Path) -> list[str]:
        """What a restore has made and not removed."""
        return [path for path in listing(root) if ".holdfast-" in path]

    def same(self, one: bytes, other: bytes) -> bool:
        """Whether two contents are of the same data."""
        return one == other

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "service"
        root.mkdir()
        self.make(root)
        return root

    def test_it_belongs_to_a_component_and_has_a_plain_name(self, root: Path) -> None:
        source = self.source(root, long_after)
        assert source.component in COMPONENTS
        assert source.name.strip("abcdefghijklmnopqrstuvwxyz0123456789-_") == ""

    def test_entries_come_in_order_and_once(self, root: Path) -> None:
        paths = [item.entry.path for item in self.source(root, long_after).scan(ignore)]
        assert paths
        assert paths == sorted(paths, key=order_key)
        assert len(set(paths)) == len(paths)

    def test_scanning_and_reading_leave_no_trace(self, root: Path) -> None:
        before = listing(root)
        source = self.source(root, long_after)
        list(source.scan(ignore))
        assert listing(root) == before
        read_all(source)
        assert listing(root) == before

    def test_content_has_the_size_that_its_entry_declares(self, root: Path) -> None:
        for item in self.source(root, long_after).scan(ignore):
            entry, content = item.open()
            assert entry.path == item.entry.path
            assert entry.kind == item.entry.kind
            if content is None:
                assert entry.kind != "file"
                assert entry.size == 0
            else:
                assert entry.kind == "file"
                size = content.size
                assert size is None or size == entry.size == len(drain(content))

    def test_an_item_can_be_opened_again(self, root: Path) -> None:
        for item in self.source(root, long_after).scan(ignore):
            (one, data), (other, again) = read(item), read(item)
            assert one == other
            assert self.same(data, again)

    def test_content_can_be_closed_unread(self, root: Path) -> None:
        before = open_files()
        for item in self.source(root, long_after).scan(ignore):
            _, content = item.open()
            if content is not None and content.stream is not None:
                content.stream.close()
        assert open_files() == before

    def test_what_did_not_change_is_unchanged(self, root: Path) -> None:
        source = self.source(root, long_after)
        read_before = {entry.path: entry for entry, _ in read_all(source)}
        scanned = {item.entry.path: item.entry for item in source.scan(ignore)}
        assert scanned.keys() == read_before.keys()
        unchanged = [is_unchanged(read_before[path], entry) for path, entry in scanned.items()]
        assert unchanged == [self.recognizes_unchanged] * len(scanned)

    def test_what_changed_is_not_unchanged(self, root: Path) -> None:
        source = self.source(root, long_after)
        before = {entry.path: entry for entry, _ in read_all(source)}
        self.change(root)
        after = {item.entry.path: item.entry for item in source.scan(ignore)}
        assert before.keys() != after.keys() or not all(
            is_unchanged(before[path], entry) for path, entry in after.items()
        )

    def test_what_was_written_a_moment_ago_is_not_trusted_to_be_unchanged(self, root: Path) -> None:
        source = self.source(root, system_clock)
        before = {entry.path: entry for entry, content in read_all(source) if content}
        after = {item.entry.path: item.entry for item in source.scan(ignore)}
        assert before
        assert not any(is_unchanged(entry, after[path]) for path, entry in before.items())

    def test_a_source_that_is_not_there_is_an_error_and_is_not_made(self, root: Path) -> None:
        self.remove(root)
        before = listing(root)
        with pytest.raises(SourceMissing):
            list(self.source(root, long_after).scan(ignore))
        assert listing(root) == before

    def test_data_that_goes_after_the_scan_is_an_error(self, root: Path) -> None:
        items = list(self.source(root, long_after).scan(ignore))
        self.remove(root)
        files = [item for item in items if item.entry.kind == "file"]
        assert files
        for item in files:
            with pytest.raises(SourceMissing):
                item.open()

    def test_its_record_is_plain_json_without_secrets(self, root: Path) -> None:
        source = self.source(root, long_after)
        read_all(source)
        record = source.record()
        text = json.dumps(asdict(record))
        assert SECRET not in text
        assert (record.component, record.name) == (source.component, source.name)
        assert record.kind
        assert all(path.partition("/")[0] in ("files", "absolute") for path in record.roots)

    def test_a_check_finds_nothing_wrong_and_changes_nothing(self, root: Path) -> None:
        state, before = self.state(root), listing(root)
        findings = list(self.source(root, long_after).check())
        assert findings
        assert not [finding for finding in findings if finding.state == "FAILED"]
        assert self.state(root) == state
        assert listing(root) == before

    def test_a_check_of_what_is_gone_fails(self, root: Path) -> None:
        self.remove(root)
        try:
            findings = list(self.source(root, long_after).check())
        except SourceError:
            return
        assert [finding for finding in findings if finding.state == "FAILED"]

    def test_needs_names_directories_that_exist(self, root: Path) -> None:
        for there in (True, False):
            if not there:
                self.remove(root)
            needs = self.target(root).needs(1_000_000)
            assert needs
            assert all(directory.is_dir() for directory in needs)
            assert sum(needs.values()) >= 1_000_000

    def test_staging_touches_nothing_live(self, root: Path) -> None:
        backup = read_all(self.source(root, long_after))
        self.change(root)
        state, before = self.state(root), listing(root)
        self.stage(root, backup)
        assert self.state(root) == state
        assert {path: listing(root)[path] for path in before} == before

    def test_staging_that_fails_leaves_nothing(self, root: Path) -> None:
        backup = read_all(self.source(root, long_after))
        self.change(root)
        state = self.state(root)
        staging = Places()
        with pytest.raises(CorruptBackup, match="cut off"):
            self.stage(root, backup, staging, cut_off=True)
        for swap in staging.registered:
            self.revive(root, swap).discard()
        staging.remove()
        assert self.left_over(root) == []
        assert self.state(root) == state

    def test_what_is_restored_is_what_was_backed_up(self, root: Path) -> None:
        old = self.state(root)
        backup = read_all(self.source(root, long_after))
        self.change(root)
        assert self.state(root) != old
        self.apply(self.stage(root, backup))
        assert self.state(root) == old

    def test_what_is_gone_comes_back(self, root: Path) -> None:
        old = self.state(root)
        backup = read_all(self.source(root, long_after))
        self.remove(root)
        swaps = self.stage(root, backup)
        self.apply(swaps)
        assert self.state(root) == old
        self.revert(root, swaps)
        assert self.state(root) is None

    def test_revert_gives_back_what_was_replaced(self, root: Path) -> None:
        backup = read_all(self.source(root, long_after))
        self.change(root)
        changed = self.state(root)
        swaps = self.stage(root, backup)
        self.apply(swaps)
        self.revert(root, swaps)
        assert self.state(root) == changed
        self.revert(root, swaps)
        assert self.state(root) == changed

    def test_revert_of_what_was_not_applied_changes_nothing(self, root: Path) -> None:
        swaps = self.stage(root, read_all(self.source(root, long_after)))
        self.change(root)
        changed = self.state(root)
        self.revert(root, swaps)
        assert self.state(root) == changed

    def test_undo_gives_back_what_was_replaced_and_can_be_undone(self, root: Path) -> None:
        old = self.state(root)
        backup = read_all(self.source(root, long_after))
        self.change(root)
        changed = self.state(root)
        swaps = self.stage(root, backup)
        self.apply(swaps)
        for expected in (changed, old, changed):
            for swap in swaps:
                self.revive(root, swap).settle()
            swaps = [self.revive(root, swap).reversed() for swap in reversed(swaps)]
            self.apply(swaps)
            assert self.state(root) == expected

    def test_an_undo_that_is_reverted_can_be_done_again(self, root: Path) -> None:
        old = self.state(root)
        backup = read_all(self.source(root, long_after))
        self.change(root)
        changed = self.state(root)
        swaps = self.stage(root, backup)
        self.apply(swaps)
        for swap in swaps:
            swap.settle()
        for _ in range(2):
            undo = [self.revive(root, swap).reversed() for swap in reversed(swaps)]
            self.apply(undo)
            assert self.state(root) == changed
            self.revert(root, undo)
            assert self.state(root) == old
        self.apply([self.revive(root, swap).reversed() for swap in reversed(swaps)])
        assert self.state(root) == changed

    def test_nothing_is_left_once_all_is_discarded(self, root: Path) -> None:
        old = self.state(root)
        backup = read_all(self.source(root, long_after))
        self.change(root)
        swaps = self.stage(root, backup)
        self.apply(swaps)
        for _ in range(2):
            for swap in swaps:
                self.revive(root, swap).settle()
        assert self.state(root) == old
        for _ in range(2):
            for swap in swaps:
                self.revive(root, swap).discard()
        assert self.state(root) == old
        assert self.left_over(root) == []

    def stage(
        self, root: Path, backup: Backup, staging: Places | None = None, *, cut_off: bool = False
    ) -> list[Swap]:
        """Swaps ready to be applied."""
        contents = {entry.path: content for entry, content in backup}
        entries = (entry for entry, _ in backup)

        def read_back(entry: Entry) -> Iterator[bytes]:
            content = contents[entry.path]
            if cut_off:
                yield content[: len(content) // 2]
                raise CorruptBackup("it is cut off")
            yield content

        return self.target(root).stage(entries, read_back, staging or Places(), ignore)

    def apply(self, swaps: list[Swap]) -> None:
        """In order, as a transaction does it."""
        for swap in swaps:
            swap.apply()

    def revert(self, root: Path, swaps: list[Swap]) -> None:
        """In the reverse order, knowing only the journal."""
        for swap in reversed(swaps):
            self.revive(root, swap).revert()

    def revive(self, root: Path, swap: Swap) -> Swap:
        """The swap as a process to come has it from the journal."""
        return self.kinds(root)[swap.kind].from_journal(json.loads(json.dumps(swap.to_journal())))


def drain(content: Content) -> bytes:
    """All of it. Closes it."""
    if content.data is not None:
        return content.data
    assert content.stream is not None
    try:
        return b"".join(bytes(piece) for piece in content.stream)
    finally:
        content.stream.close()


def read(item: Item) -> tuple[Entry, bytes]:
    """The entry as it is stored, and its content; empty for what has none."""
    entry, content = item.open()
    return entry, b"" if content is None else drain(content)


def read_all(source: Source) -> Backup:
    """The source as a backup has it."""
    return [read(item) for item in source.scan(ignore)]


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every name below a directory, with what changes when it is written to: size and time."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            is_directory = name in names
            found[path] = (0, 0) if is_directory else (status.st_size, status.st_mtime_ns)
    return found


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/dev/fd"))
