"""Files and directories going back to where they were: staged beside their targets, then swapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from holdfast.errors import RestoreError
from holdfast.events import Emit
from holdfast.model import Entry
from holdfast.sources.base import Read, Staging
from holdfast.sources.files._databases import is_database
from holdfast.sources.files._directories import READ_DIRECTORY
from holdfast.sources.files._mounts import is_mount_point, mount_points
from holdfast.sources.files._roots import below
from holdfast.sources.files._swap import STAGED, RenameSwap
from holdfast.sources.files._writer import Spot, sync_file_system, write_tree
from holdfast.sources.sqlite._format import SIDE_FILES
from holdfast.text import shown
from holdfast.transaction import Swap, open_place, restoring

_ELSEWHERE = "Or restore elsewhere with --target DIR."


class FilesTarget:
    """Where the roots of a files source go back to. Implements `Restorable`.

    A root becomes what the backup says: what a directory holds beyond that goes into the kept state. A target
    that is a link is followed, as it is when it is backed up. Missing directories above a target are made.
    """

    def __init__(
        self,
        targets: Mapping[str, Path],
        *,
        never: Collection[Path] = (),
        inner: Mapping[str, Path] | None = None,
    ) -> None:
        """`targets`: for the entry path of each root, where it belongs. `never`: what no restore may take away
        or replace, such as keys and the backup directory.

        `inner`: those of `targets` that are no roots but lie in one, and where that root is. There a link is data
        like any other, and is replaced and not followed; and what is kept lies beside the root, so that a later
        restore of all of it finds nothing of ours in it.
        """
        self._targets = targets
        self._never = never
        self._inner = inner or {}

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """See `Restorable.needs`. What is live is kept by renaming it, and takes no room. Empty where the targets
        are on several file systems: how much goes to which is not known beforehand."""
        file_systems = {_file_system(os.path.realpath(path)) for path in self._targets.values()}
        return dict.fromkeys(file_systems, total_bytes) if len(file_systems) == 1 else {}

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """See `Restorable.stage`. A root without an entry is left alone.

        Raises HostileBackup, CorruptBackup, NoSpace, and RestoreError where a target cannot be replaced.
        """
        with ExitStack() as stack:
            stage = _Stage(self._targets, self._never, self._inner, staging, stack)
            write_tree(entries, read, self._targets, stage.locate, emit)
            return stage.swaps()

    def place_of(self, root: str) -> Path:
        """Where the root of that entry path goes."""
        return self._targets[root]

    def write(self, entries: Iterator[Entry], read: Read, emit: Emit, *, within: Path) -> None:
        """Writes everything straight to the targets, where nothing may be yet: a restore to elsewhere.

        `within`: an existing directory that nothing is written outside of, not even through a link in it. What is
        missing between it and a target is made. Raises HostileBackup, CorruptBackup, NoSpace, RestoreError.
        """
        with restoring(f"cannot write to {shown(str(within))}"), ExitStack() as stack:
            directory = _opened(within, stack)

            def locate(entry: Entry) -> Spot:
                return Spot(directory, self._targets[entry.path].relative_to(within).parts)

            write_tree(entries, read, self._targets, locate, emit)
            sync_file_system(directory)


def make_empty_directory(directory: Path) -> None:
    """Makes the directory that a restore to elsewhere writes to (0700), and those above it.

    An empty one will do. Raises RestoreError for one that is not, and when it cannot be made; NoSpace.
    """
    with restoring(f"cannot use {directory}"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            with os.scandir(directory) as entries:
                if next(entries, None) is not None:
                    raise RestoreError(
                        f"{directory} is not empty",
                        hint="Name an empty directory, or one that is not there yet.",
                    ) from None


class _Ground:
    """A directory in which roots go live, and its private place."""

    def __init__(
        self, live: Path, staging: Staging, stack: ExitStack, *, whole: bool, beside: Path | None = None
    ) -> None:
        """`whole`: all that is in it is replaced, because it cannot be renamed itself. `beside`: where its private
        place is made, a directory above it, else itself."""
        beside = beside or live
        self.place = staging.place(beside)
        self.whole = whole
        self.names: dict[str, None] = {}
        self._within = live.relative_to(beside).parts
        self.descriptor = open_place(self.place.name, _opened(beside, stack))
        stack.callback(os.close, self.descriptor)
        if not whole:
            os.mkdir(STAGED, 0o700, dir_fd=self.descriptor)

    def spot(self, parts: tuple[str, ...]) -> Spot:
        """Where to stage what goes to `parts` below the live directory."""
        self.names.update(dict.fromkeys(parts[:1]))
        return Spot(self.descriptor, (STAGED, *parts))

    def swap(self) -> RenameSwap:
        """The swap, once everything is staged; that is durable then."""
        with restoring(f"cannot write what was staged in {shown(str(self.place))} to the disk"):
            sync_file_system(self.descriptor)
        return RenameSwap.prepare(self.place, None if self.whole else self._with_logs(), self._within)

    def _with_logs(self) -> Iterator[str]:
        # A database's old log beside a new database would be played back into it.
        staged = os.open(STAGED, READ_DIRECTORY, dir_fd=self.descriptor)
        try:
            for name in self.names:
                yield name
                if _is_database(name, staged):
                    yield from (name + suffix for suffix in SIDE_FILES if name + suffix not in self.names)
        finally:
            os.close(staged)


class _Stage:
    """One call of `FilesTarget.stage`."""

    def __init__(
        self,
        targets: Mapping[str, Path],
        never: Collection[Path],
        inner: Mapping[str, Path],
        staging: Staging,
        stack: ExitStack,
    ) -> None:
        self._targets = targets
        self._inner = inner
        self._never = [os.path.realpath(path) for path in never if os.path.lexists(path)]
        self._staging = staging
        self._stack = stack
        self._mounts = mount_points()
        self._taken: set[str] = set()
        self._above_taken: set[str] = set()
        self._grounds: dict[str, _Ground] = {}

    def locate(self, entry: Entry) -> Spot:
        """Where to stage a root. Raises RestoreError where its target cannot be replaced."""
        target = os.path.realpath(self._targets[entry.path])
        if entry.kind == "symlink" or entry.path in self._inner:
            directory, name = os.path.split(os.path.abspath(self._targets[entry.path]))
            target = os.path.join(os.path.realpath(directory), name)
        self._check(target)
        mounted = is_mount_point(target, self._mounts)
        directory = os.path.dirname(target)
        if os.path.isdir(target) and not os.path.islink(target):
            if mounted or not _may_write(directory):
                if entry.kind != "directory":
                    raise RestoreError(
                        f"{shown(target)} is a directory that cannot be renamed, and in the backup it is none",
                        hint=_ELSEWHERE,
                    )
                return self._ground(target, whole=True).spot(())
        elif mounted:
            raise RestoreError(
                f"{shown(target)} is a file that is mounted by itself, and so cannot be replaced",
                hint="Mount the directory that it is in. " + _ELSEWHERE,
            )
        while not os.path.isdir(directory):
            if os.path.lexists(directory):
                raise RestoreError(
                    f"{shown(directory)} is no directory, so {shown(target)} cannot be restored"
                )
            directory = os.path.dirname(directory)
        parts = os.path.relpath(target, directory).split("/")
        root = self._inner.get(entry.path)
        beside = None if root is None else self._beside(directory, os.path.realpath(root))
        return self._ground(directory, whole=False, beside=beside).spot(tuple(parts))

    def swaps(self) -> list[Swap]:
        """The swaps for all that was staged."""
        return [ground.swap() for ground in self._grounds.values()]

    def _check(self, target: str) -> None:
        above = {str(parent) for parent in Path(target).parents}
        if target in self._taken or target in self._above_taken or not above.isdisjoint(self._taken):
            raise RestoreError(
                f"{shown(target)} is in, or holds, another path that is to be replaced",
                hint="Restore elsewhere with --target DIR, and copy what you need.",
            )
        self._taken.add(target)
        self._above_taken |= above
        for kept in self._never:
            if below(kept, target) is not None:
                raise RestoreError(
                    f"{shown(target)} would be replaced as a whole, and {shown(kept)} is in it",
                    hint="Move that elsewhere first. " + _ELSEWHERE,
                )
        for mount in self._mounts:
            if below(mount, target):
                raise RestoreError(
                    f"{shown(mount)} is mounted in {shown(target)}, which therefore cannot be replaced as a whole",
                    hint="Unmount it, or list what is mounted as a path of its own. " + _ELSEWHERE,
                )

    def _beside(self, directory: str, root: str) -> Path | None:
        """Where a private place can lie for what goes live in a directory that is, or is in, a root."""
        for place in (os.path.dirname(root), root) if _may_write(directory) else ():
            between = below(directory, place)
            if between is not None and _may_write(place):
                parts = [part for part in between.split("/") if part]
                ways = (os.path.join(place, *parts[:count]) for count in range(1, len(parts) + 1))
                if not any(is_mount_point(way, self._mounts) for way in ways):
                    return Path(place)
        return None

    def _ground(self, live: str, *, whole: bool, beside: Path | None = None) -> _Ground:
        if live not in self._grounds:
            with restoring(f"cannot write to {shown(live)}"):
                self._grounds[live] = _Ground(
                    Path(live), self._staging, self._stack, whole=whole, beside=beside
                )
        return self._grounds[live]


def _opened(directory: Path, stack: ExitStack) -> int:
    descriptor = os.open(directory, READ_DIRECTORY & ~os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    return descriptor


def _is_database(name: str, directory: int) -> bool:
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        return stat.S_ISREG(status.st_mode) and is_database(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _may_write(directory: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)


def _file_system(path: str) -> Path:
    """The uppermost directory on the file system that a real path is on, or will be on."""
    place = Path(path)
    while not place.is_dir():
        place = place.parent
    device = place.stat().st_dev
    while place.parent != place and place.parent.stat().st_dev == device:
        place = place.parent
    return place
