"""Files and directories replaced by renaming, reversibly."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from holdfast.errors import RestoreError
from holdfast.sources.files._attributes import Attributes, AttributeWriter
from holdfast.sources.files._content import read_xattrs
from holdfast.sources.files._directories import READ_DIRECTORY
from holdfast.text import shown
from holdfast.transaction import Swap, is_place_name, list_some, open_place, remove_place, restoring

STAGED = "staged"
"""Where in a private place that is put which is to go live, under the names it will have there."""
_KEPT = "kept"
_GOING = ".going"


class Side(NamedTuple):
    """The old state or the new one, while it is not live."""

    directory: str
    """Where in the private place."""
    modes: dict[str, int]
    """Directories that must be made writable before they can be moved, and their modes."""
    top: Attributes | None
    """What the live directory itself has, where all that is in it is replaced, and it is ours."""

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "top": None if self.top is None else self.top.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Side:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        if data["directory"] not in (STAGED, _KEPT):
            raise ValueError(f"{data['directory']!r} is no directory of a private place")
        modes = {name: int(mode) & 0o7777 for name, mode in data["modes"].items()}
        _check_names(modes)
        return cls(
            data["directory"], modes, None if data["top"] is None else Attributes.from_json(data["top"])
        )


@dataclass(frozen=True, slots=True)
class RenameSwap:
    """Replaces some names in a directory, or all that is in it (a mount point cannot be renamed itself).

    Its private place lies in that directory, or in one above it::

        /srv/                              live
        ├── models/                        one of the names
        └── .holdfast-5f0c…-0/             place
            ├── kept/models/               what was live before
            ├── staged/models/             what is to come
            └── staged.going/              `staged`, from the moment that its names may be live

    `apply` moves the old names to ``kept``, renames ``staged`` to ``staged.going``, and moves what is in it up.
    So the directories alone tell how far it came: every name is in one place at a time, and those that are live
    are new if there is a ``staged.going``, and old if not. A name may be missing on either side.
    """

    kind: ClassVar[str] = "rename"
    place: Path
    names: tuple[str, ...] | None
    """None: all but private places."""
    new: Side
    old: Side
    note: str = ""
    within: tuple[str, ...] = ()
    """The way from the directory of the place to the one whose names are replaced."""

    @classmethod
    def prepare(cls, place: Path, names: Iterable[str] | None, within: tuple[str, ...] = ()) -> RenameSwap:
        """The swap for what lies in ``staged`` in `place`. Where `names` is None, ``staged`` also has the
        attributes for the live directory. Raises RestoreError, NoSpace."""
        chosen = None if names is None else tuple(names)
        with _Ground.opened(place, within) as ground:
            mode = stat.S_IMODE(os.stat(STAGED, dir_fd=ground.place, follow_symlinks=False).st_mode)
            os.chmod(STAGED, 0o700, dir_fd=ground.place)
            staged = ground.enter(STAGED)
            note, top = "", None
            if names is None and ground.is_ours():
                # Where all but root could not get in again, nothing could be taken back.
                top = Attributes.of_open(staged)._replace(mode=mode if os.geteuid() == 0 else mode | 0o700)
            elif names is None:
                note = (
                    f"{shown(str(place.parent))} keeps its own mode and owner: this user may not change them"
                )
            new = Side(STAGED, _unmovable(staged, _listed(staged)), top)
            return cls(place, chosen, new, ground.side(_KEPT, chosen), note, within)

    def to_journal(self) -> dict[str, Any]:
        names = None if self.names is None else list(self.names)
        return {
            "place": str(self.place),
            "names": names,
            "new": self.new.to_json(),
            "old": self.old.to_json(),
            "within": list(self.within),
        }

    @classmethod
    def from_journal(cls, state: dict[str, Any], /) -> RenameSwap:
        """The inverse of `to_journal`. Believes nothing: raises KeyError, TypeError, ValueError."""
        place = Path(state["place"])
        if not place.is_absolute() or ".." in place.parts or not is_place_name(place.name):
            raise ValueError(f"{place} is not a private place")
        names = None if state["names"] is None else tuple(state["names"])
        within = tuple(state["within"])
        _check_names((*(names or ()), *within))
        return cls(place, names, Side.from_json(state["new"]), Side.from_json(state["old"]), within=within)

    def apply(self) -> None:
        with _Ground.opened(self.place, self.within) as ground:
            going = self.new.directory + _GOING
            if ground.has(self.new.directory):
                if not ground.has(self.old.directory):
                    os.mkdir(self.old.directory, 0o700, dir_fd=ground.place)
                    os.fsync(ground.place)
                kept = ground.enter(self.old.directory)
                for name in ground.live_names(self.names):
                    ground.take(name, kept, self.old.modes)
                ground.flush(kept)
                ground.rename(self.new.directory, going)
            arriving = ground.enter(going)
            for name in _drained(arriving):
                ground.give(name, arriving, self.new.modes)
            ground.finish(self.new)
            ground.flush(arriving)

    def revert(self) -> None:
        with _Ground.opened(self.place, self.within) as ground:
            going = self.new.directory + _GOING
            if ground.has(going):
                back = ground.enter(going)
                for name in ground.live_names(self.names):
                    ground.take(name, back, self.new.modes)
                ground.flush(back)
                ground.rename(going, self.new.directory)
            if ground.has(self.old.directory):
                kept = ground.enter(self.old.directory)
                for name in _drained(kept):
                    ground.give(name, kept, self.old.modes)
                ground.finish(self.old)
                ground.flush(kept)
                os.rmdir(self.old.directory, dir_fd=ground.place)
                os.fsync(ground.place)

    def reversed(self) -> Swap:
        """See `Swap.reversed`. Raises RestoreError where the kept state is gone."""
        self.settle()
        with _Ground.opened(self.place, self.within) as ground:
            if not ground.has(self.old.directory):
                raise RestoreError(f"what {self.place} kept is gone")
            kept = ground.side(self.new.directory, self.names)
            return RenameSwap(self.place, self.names, self.old, kept, within=self.within)

    def settle(self) -> None:
        with _Ground.opened(self.place, self.within) as ground:
            if ground.has(going := self.new.directory + _GOING):
                os.rmdir(going, dir_fd=ground.place)

    def discard(self) -> None:
        with restoring(f"cannot delete {self.place}"):
            remove_place(self.place)


class _Ground:
    """A live directory and the private place in it, held open."""

    def __init__(self, stack: ExitStack, place: Path, within: Sequence[str]) -> None:
        self._stack = stack
        self.live = self._held(os.open(place.parent, READ_DIRECTORY))
        self.place = self._held(open_place(place.name, self.live))
        for name in within:
            self.live = self._held(os.open(name, READ_DIRECTORY, dir_fd=self.live))

    @classmethod
    @contextmanager
    def opened(cls, place: Path, within: Sequence[str]) -> Iterator[_Ground]:
        """Raises RestoreError, NoSpace, JournalRefused; in the block too, for what the system refuses there."""
        live = str(place.parent.joinpath(*within))
        with restoring(f"cannot replace what is in {shown(live)}"), ExitStack() as stack:
            yield cls(stack, place, within)

    def _held(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    def is_ours(self) -> bool:
        """Whether we may change the live directory's attributes, and change them back."""
        status = os.fstat(self.live)
        groups = {os.getegid(), *os.getgroups()}
        return os.geteuid() == 0 or (status.st_uid == os.geteuid() and status.st_gid in groups)

    def has(self, name: str) -> bool:
        return _exists(name, self.place)

    def enter(self, name: str) -> int:
        """A descriptor of a directory in the place."""
        return self._held(os.open(name, READ_DIRECTORY, dir_fd=self.place))

    def rename(self, name: str, other: str) -> None:
        """Renames in the place, durably."""
        os.rename(name, other, src_dir_fd=self.place, dst_dir_fd=self.place)
        os.fsync(self.place)

    def flush(self, inner: int) -> None:
        """Makes the moves between the live directory and one in the place durable."""
        os.fsync(inner)
        os.fsync(self.live)

    def side(self, directory: str, names: Sequence[str] | None) -> Side:
        """What is live now, as a side that will be kept in `directory`."""
        top = Attributes.of_open(self.live) if names is None and self.is_ours() else None
        return Side(directory, _unmovable(self.live, _listed(self.live) if names is None else names), top)

    def live_names(self, names: Sequence[str] | None) -> Iterator[str]:
        """Those of `names` that are live; or all, one after the other being moved away."""
        return _drained(self.live) if names is None else (name for name in names if _exists(name, self.live))

    def take(self, name: str, into: int, modes: dict[str, int]) -> None:
        """Moves a live name away."""
        if _exists(name, into):
            self._set_aside(name)
        else:
            _move(name, self.live, into, modes)

    def give(self, name: str, out_of: int, modes: dict[str, int]) -> None:
        """Makes a name live."""
        if _exists(name, self.live):
            self._set_aside(name)
        _move(name, out_of, self.live, modes)

    def finish(self, side: Side) -> None:
        """Gives what has become live its attributes, where moving had to change them."""
        for name, mode in side.modes.items():
            if _exists(name, self.live):
                os.chmod(name, mode, dir_fd=self.live)
        if side.top is not None:
            for extra in (read_xattrs(self.live) or {}).keys() - (side.top.xattrs or {}).keys():
                os.removexattr(self.live, extra)
            AttributeWriter(lambda what, path: None).write(self.live, side.top, "")

    def _set_aside(self, name: str) -> None:
        # The service runs on, and has made the name anew while it was missing between two renames.
        stray = next(free for n in itertools.count() if not self.has(free := f"stray-{n}"))
        os.rename(name, stray, src_dir_fd=self.live, dst_dir_fd=self.place)


def _move(name: str, source: int, target: int, modes: dict[str, int]) -> None:
    if name in modes:
        os.chmod(name, modes[name] | 0o200, dir_fd=source)
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _listed(directory: int) -> Iterator[str]:
    """All that could be moved away from a directory."""
    with os.scandir(directory) as entries:
        yield from (entry.name for entry in entries if _is_movable(entry.name))


def _drained(directory: int) -> Iterator[str]:
    """The same, while each name is moved away as it comes, until nothing is left."""
    while names := [name for name, _ in list_some(directory) if _is_movable(name)]:
        yield from names


def _is_movable(name: str) -> bool:
    # lost+found belongs to the file system, and only root can move it.
    return not is_place_name(name) and (name != "lost+found" or os.geteuid() == 0)


def _unmovable(directory: int, names: Iterable[str]) -> dict[str, int]:
    """Those that are directories without the owner's write permission, and their modes. A directory's link to its
    parent changes as it is moved to another, so all but root must be able to write it: rename(2), EACCES."""
    modes = {}
    if os.geteuid() != 0:
        for name in names:
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IWUSR:
                    modes[name] = stat.S_IMODE(status.st_mode)
    return modes


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name or is_place_name(name):
            raise ValueError(f"{name!r} is not a name to replace")
