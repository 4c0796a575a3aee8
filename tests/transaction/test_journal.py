from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from forks import NOBODY, among_own_mounts, mount_memory, scratch
from holdfast.errors import JournalRefused, NoSpace
from holdfast.sources.files._swap import RenameSwap
from holdfast.transaction import Transaction, kept, recover, undo

KINDS = {RenameSwap.kind: RenameSwap}


def clock() -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory with a journal of a restore that was committed, and a service beside it."""
    with scratch() as directory:
        yield _restored(directory)


def _restored(directory: Path) -> Path:
    live = directory / "service"
    live.mkdir()
    (live / "models").write_text("old")
    state = directory / "state"
    with Transaction.begin(state, KINDS, verb="restore", subject="x", clock=clock) as transaction:
        place = transaction.place(live)
        (place / "staged").mkdir()
        (place / "staged" / "models").write_text("new")
        transaction.apply([RenameSwap.prepare(place, ["models"])])
    return state


def assert_refused(state: Path) -> None:
    """Every way to follow the journal is refused, by its name, and nothing has happened."""
    before = sorted(path for path in state.parent.rglob("*") if not path.is_relative_to(state))
    attempts: list[Callable[[], object]] = [
        lambda: recover(state, KINDS, clock()),
        lambda: undo(state, KINDS, clock=clock),
        lambda: Transaction.begin(state, KINDS, verb="restore", subject="x", clock=clock).__enter__(),
        lambda: kept(state),
    ]
    for attempt in attempts:
        with pytest.raises(JournalRefused) as refused:
            attempt()
        assert str(state) in str(refused.value)
        assert refused.value.hint
    assert sorted(path for path in state.parent.rglob("*") if not path.is_relative_to(state)) == before


def edit(state: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = state / "restore.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_journal_and_directory_are_private(state: Path) -> None:
    assert state.stat().st_mode & 0o7777 == 0o700
    for path in state.iterdir():
        assert path.stat().st_mode & 0o7777 == 0o600
    assert sorted(path.name for path in state.iterdir()) == ["restore.json", "restore.lock"]


def test_no_journal_is_nothing_to_recover(tmp_path: Path) -> None:
    assert recover(tmp_path / "missing", KINDS, clock()) is None
    assert recover(tmp_path, KINDS, clock()) is None
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_journal_that_others_may_touch_is_refused(state: Path, mode: int) -> None:
    (state / "restore.json").chmod(mode)
    assert_refused(state)


@pytest.mark.parametrize("mode", [0o750, 0o701 | 0o004, 0o720, 0o777])
def test_a_directory_that_others_may_touch_is_refused(state: Path, mode: int) -> None:
    state.chmod(mode)
    assert_refused(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["restore.json", "."])
def test_what_belongs_to_another_user_is_refused(state: Path, name: str) -> None:
    os.chown(state / name, NOBODY, -1)
    assert_refused(state)


def test_a_journal_that_is_a_link_is_refused(state: Path) -> None:
    (state / "restore.json").rename(state / "other")
    (state / "restore.json").symlink_to("other")
    assert_refused(state)


def test_a_directory_that_is_a_link_is_refused(state: Path) -> None:
    state.rename(state.parent / "other")
    state.symlink_to("other")
    assert_refused(state)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"[]", b"1", b'{"version": 1}', b'{"version": 2, "records": []}', b"[" * 100_000],
    ids=["empty", "cut", "binary", "list", "number", "no records", "version", "deep"],
)
def test_what_is_no_journal_is_refused(state: Path, text: bytes) -> None:
    (state / "restore.json").write_bytes(text)
    assert_refused(state)


def test_a_journal_without_end_is_refused(state: Path) -> None:
    with (state / "restore.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert_refused(state)


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *way, last = path.split(".")
        here: Any = data["records"][0]
        for step in way:
            here = here[int(step)] if step.isdecimal() else here[step]
        here[int(last) if last.isdecimal() else last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("places.0", "/etc"),
        _set("places.0", "/home/.holdfast-0123456789abcdef-0"),
        _set("places.0", ".holdfast-0123456789abcdef-0"),
        _set("places.0", 7),
        _set("places", "/etc"),
        _set("run", "../../etc"),
        _set("run", 7),
        _set("moment", "yesterday"),
        _set("phase", "unheard of"),
        _set("swaps", ["x"]),
        _set("swaps.0", {"kind": 7, "state": {}}),
        _set("swaps.0", {"kind": "rename"}),
        _set("unknown", 1),
        lambda data: data["records"].append({}),
        lambda data: (
            [record.update(phase="applying") for record in data["records"] * 2]
            + [data["records"].append(data["records"][0])]
        ),
    ],
)
def test_a_journal_that_we_would_not_have_written_is_refused(
    state: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(state, change)
    assert_refused(state)


@pytest.mark.parametrize("way", ["/../", "/./", "//"])
def test_a_place_that_is_reached_by_detours_is_refused(state: Path, way: str) -> None:
    def detour(data: dict[str, Any]) -> None:
        directory, name = os.path.split(data["records"][0]["places"][0])
        data["records"][0]["places"][0] = f"{directory}/models{way}{name}"

    edit(state, detour)
    assert_refused(state)


@pytest.mark.parametrize(
    "change",
    [
        _set("swaps.0.kind", "unheard of"),
        _set("swaps.0.state", {}),
        _set("swaps.0.state.place", "/etc"),
        _set("swaps.0.state.place", "x/.holdfast-0123456789abcdef-0"),
        _set("swaps.0.state.names", ["../../etc"]),
        _set("swaps.0.state.names", [".."]),
        _set("swaps.0.state.names", ["a/b"]),
        _set("swaps.0.state.names", [7]),
        _set("swaps.0.state.old.directory", "../.."),
        _set("swaps.0.state.old.modes", {"../..": 0o777}),
        _set("swaps.0.state.new", None),
    ],
)
def test_a_step_that_we_would_not_have_written_is_refused(
    state: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(state, change)
    with pytest.raises(JournalRefused, match=r"restore\.json"):
        undo(state, KINDS, clock=clock)
    assert (state.parent / "service" / "models").read_text() == "new"


def test_names_that_are_not_utf_8_go_through_the_journal(tmp_path: Path) -> None:
    live = tmp_path / os.fsdecode(b"caf\xe9")
    live.mkdir()
    name = os.fsdecode(b"\xff\xfe")
    (live / name).write_text("old")
    with Transaction.begin(
        tmp_path / "state", KINDS, verb="restore", subject="x", clock=clock
    ) as transaction:
        place = transaction.place(live)
        (place / "staged").mkdir()
        (place / "staged" / name).write_text("new")
        transaction.apply([RenameSwap.prepare(place, [name])])
    assert (live / name).read_text() == "new"
    undo(tmp_path / "state", KINDS, clock=clock)
    assert (live / name).read_text() == "old"


def test_left_over_temporary_files_go(state: Path) -> None:
    (state / ".restore.json.0123.tmp").write_text("cut short")
    undo(state, KINDS, clock=clock)
    assert sorted(path.name for path in state.iterdir()) == ["restore.json", "restore.lock"]


def test_a_full_disk_is_told_as_such_and_replaces_nothing(tmp_path: Path) -> None:
    live = tmp_path / "service"

    def restore() -> None:
        with Transaction.begin(tmp_path / "state", KINDS, verb="restore", subject="x", clock=clock) as begun:
            place = begun.place(live)
            (place / "staged").mkdir()
            (place / "staged" / "models").write_text("new")
            with suppress(OSError), (tmp_path / "filled").open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
            begun.apply([RenameSwap.prepare(place, ["models"])])

    def restore_on_a_full_disk() -> None:
        mount_memory(tmp_path, size=1 << 16)
        live.mkdir()
        (live / "models").write_text("old")
        with pytest.raises(NoSpace, match=r"restore\.json"):
            restore()
        assert (live / "models").read_text() == "old"
        assert list(live.iterdir()) == [live / "models"]
        assert [path.name for path in (tmp_path / "state").iterdir()] == ["restore.lock"]

    among_own_mounts(restore_on_a_full_disk)
