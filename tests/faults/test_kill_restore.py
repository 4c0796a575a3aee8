"""A restore, an undo and a recovery, killed at every point there is.

The scenario has one of everything that a restore replaces: a directory, a file, a name that was not there, a file
that was chosen of a directory, a directory replaced from inside as a mount point is, links, hard links, and an
earlier restore that could be taken back until this one is committed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forks import count_calls, run_killed, scratch
from holdfast.events import ignore
from holdfast.sources.files._staging import FilesTarget
from holdfast.sources.files._swap import RenameSwap
from holdfast.sources.files._writer import Spot, write_tree
from holdfast.transaction import Kept, Swap, Transaction, discard, kept, open_place, recover, undo
from sources.disk import Backup, Seen, directory, file, hardlink, look, places, symlink

KINDS = {RenameSwap.kind: RenameSwap}
SAMPLE = 150


def clock() -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC)


class Service:
    """A service's data in one directory, its state in another."""

    def __init__(self, path: Path) -> None:
        self.root = path / "service"
        self.state = path / "state"
        (self.root / "models" / "closed").mkdir(parents=True)
        (self.root / "volume" / "inner").mkdir(parents=True)
        (self.root / "tree" / "sub").mkdir(parents=True)
        for name in (
            ".env",
            "neighbor",
            "models/a",
            "models/closed/b",
            "tree/sub/h",
            "volume/c",
            "volume/inner/d",
        ):
            (self.root / name).write_text(f"first {name}")
        (self.root / "models" / "link").symlink_to("closed")
        os.link(self.root / "models" / "a", self.root / "models" / "hard")
        (self.root / "models" / "closed").chmod(0o500)
        for path in (*self.root.rglob("*"), self.root):
            os.utime(path, ns=(0, 1_600_000_000_000_000_000), follow_symlinks=False)

    def restore(self, text: str) -> None:
        """Replaces everything but the neighbor, and keeps what it replaces. What is new differs in names, modes
        and contents with each `text`."""
        content = text.encode()
        mode = 0o700 + len(text)
        files = Backup(
            (file("absolute/new/x", mode=mode), content),
            (file("files/.env", mode=0o600), content),
            (file(f"files/{text}", mode=0o600), content),
            directory("files/models", mode=mode),
            (file("files/models/a"), content),
            directory("files/models/sub", mode=0o555),
            (file("files/models/sub/e"), content),
            hardlink("files/models/sub/f", "files/models/sub/e"),
            symlink("files/models/to", "sub"),
            (file("files/tree/sub/h", mode=mode), content),
        )
        volume = Backup(
            directory("v", mode=mode), (file("v/c"), content), directory(f"v/{text}"), file(f"v/{text}/g")
        )
        names = {
            "files/.env": ".env",
            f"files/{text}": text,
            "files/models": "models",
            "files/tree/sub/h": "tree/sub/h",
            "absolute/new/x": "new/x",
        }
        target = FilesTarget(
            {root: self.root / name for root, name in names.items()},
            inner={"files/tree/sub/h": self.root / "tree"},
        )
        with Transaction.begin(self.state, KINDS, verb="restore", subject=text, clock=clock) as transaction:
            swaps = target.stage(files.entries(), files.read, transaction, ignore)
            swaps.append(stage_whole(transaction.place(self.root / "volume"), volume))
            assert transaction.apply(swaps) == ()

    def undo(self) -> None:
        undo(self.state, KINDS, clock)

    def recover(self) -> None:
        recover(self.state, KINDS, clock())

    def look(self) -> dict[str, Seen]:
        """The data. Directories that private places come and go in have times of their own."""
        found = look(self.root)
        for name in ("new", "tree/sub", "volume"):
            if name in found:
                found[name] = found[name]._replace(mtime_ns=0)
        return found

    def recorded_places(self) -> list[str]:
        """The private places that the journal knows of."""
        records = json.loads((self.state / "restore.json").read_text())["records"]
        return sorted(os.path.relpath(place, self.root) for record in records for place in record["places"])

    def kept(self) -> Kept | None:
        return kept(self.state)


def stage_whole(place: Path, backup: Backup) -> Swap:
    """What a target does for a mount point."""
    live = os.open(place.parent, os.O_RDONLY)
    inner = open_place(place.name, live)
    try:
        write_tree(backup.entries(), backup.read, ["v"], lambda entry: Spot(inner, ("staged",)), ignore)
    finally:
        os.close(inner)
        os.close(live)
    return RenameSwap.prepare(place, None)


def restored_once(path: Path) -> Service:
    """A service as it is before the second restore: the first one can be taken back."""
    service = Service(path)
    service.restore("second")
    return service


def restored_twice(path: Path) -> Service:
    service = restored_once(path)
    service.restore("third")
    return service


def points(action: Callable[[Service], None], prepare: Callable[[Path], Service]) -> int:
    with scratch() as path:
        service = prepare(path)
        return count_calls(lambda: action(service))


def assert_survives(
    prepare: Callable[[Path], Service], action: Callable[[Service], None], at: int, rng: random.Random
) -> bool:
    """Kills `action` at one point and the recovery at others. Returns whether the new state came of it."""
    with scratch() as path:
        service = prepare(path)
        old, old_kept = service.look(), service.kept()
        finished = run_killed(lambda: action(service), at)
        while not run_killed(service.recover, rng.randrange(1, 200)):
            pass
        found = service.look()
        is_new = found != old
        assert is_new or not finished
        assert recover(service.state, KINDS, clock()) is None
        if not is_new:
            assert service.kept() == old_kept
            assert places(service.root) == service.recorded_places()
            action(service)
            assert service.look() != old
            new_kept = service.kept()
        else:
            new_kept = service.kept()
            assert new_kept != old_kept
            assert found == after(prepare, action)
        assert new_kept is not None
        assert places(service.root) == service.recorded_places()
        service.undo()
        assert service.look() == old
        discard(service.state, KINDS)
        assert places(service.root) == []
        assert service.look() == old
        return is_new


_after: dict[tuple[object, object], dict[str, Seen]] = {}


def after(prepare: Callable[[Path], Service], action: Callable[[Service], None]) -> dict[str, Seen]:
    """What `action` leads to when nothing kills it."""
    if (prepare, action) not in _after:
        with scratch() as path:
            service = prepare(path)
            action(service)
            _after[prepare, action] = service.look()
    return _after[prepare, action]


def restore(service: Service) -> None:
    service.restore("third")


def take_back(service: Service) -> None:
    service.undo()


ACTIONS = pytest.mark.parametrize(
    ("prepare", "action"), [(restored_once, restore), (restored_twice, take_back)], ids=["restore", "undo"]
)


def killed_at(
    numbers: Iterator[int], prepare: Callable[[Path], Service], action: Callable[[Service], None]
) -> None:
    outcomes = {number: assert_survives(prepare, action, number, random.Random(number)) for number in numbers}
    # Once the commit is reached there is no way back: the old states come first, then the new ones.
    assert sorted(outcomes.values()) == [outcomes[number] for number in sorted(outcomes)]
    assert set(outcomes.values()) == {False, True}


@ACTIONS
def test_data_is_as_before_or_as_after_wherever_it_is_killed(
    prepare: Callable[[Path], Service], action: Callable[[Service], None]
) -> None:
    total = points(action, prepare)
    chosen = random.Random(0).sample(range(1, total + 1), min(total, SAMPLE // 2))
    killed_at(iter({1, *chosen, total + 1}), prepare, action)


@pytest.mark.torture
@ACTIONS
def test_data_is_as_before_or_as_after_at_every_point(
    prepare: Callable[[Path], Service], action: Callable[[Service], None]
) -> None:
    killed_at(iter(range(1, points(action, prepare) + 2)), prepare, action)
