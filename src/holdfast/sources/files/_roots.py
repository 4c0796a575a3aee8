"""From configured paths to the places where a scan begins."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from holdfast.errors import ConfigError, SourceMissing
from holdfast.model import order_key
from holdfast.sources.files._directories import failure
from holdfast.sources.files._excludes import compile_name
from holdfast.text import shown

MATCHES_MAX = 10_000
"""Roots that one pattern may stand for. A backup remembers its roots one by one."""

STAGING_PREFIX = ".holdfast-"
"""What a restore fills beside its target; never backed up."""


@dataclass(frozen=True, slots=True)
class Root:
    """A file or directory to back up, with all that is in it."""

    path: str
    """Its entry path."""
    real: str
    """Where it is, absolute and free of links; of a link that is kept as one, where the link is."""
    required: bool
    """Whether it must be there."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    place: str
    real: str
    is_link: bool
    is_directory: bool
    """It, or what the link leads to."""
    leads_nowhere: bool
    required: bool


class RootFinder:
    """Finds the roots of one source. A path that exists is taken as it stands; else its last part may be a
    pattern, which leaves out names that begin with a dot, as a shell does."""

    def __init__(
        self, service_root: str, paths: Sequence[str], *, optional: bool, never: Collection[str]
    ) -> None:
        """`service_root` is absolute. `never`: real paths of what is left out with all that is in it."""
        for path in paths:
            if not path or "\0" in path:
                raise ConfigError(f"{path!r} is not a path", hint="Name a file or directory to back up.")
        self._service_roots = (service_root, os.path.realpath(service_root))
        self._paths = paths
        self._optional = optional
        self._never = never

    def find(self, is_excluded: Callable[[str, bool], bool]) -> list[Root]:
        """The roots that are there, in the order of their entry paths; none lies in another.

        A root that is a link is followed; but one that leads into another root, or that a pattern found and
        that leads nowhere, is kept as the link it is. A path that leads out of another root by a link in
        between goes by its real place, for nothing can be restored beneath a link. `is_excluded` is asked about
        the entry path of each path that is there, and whether it is a directory.

        Raises SourceMissing for a path that is not optional and not there, and for any that is a link to
        nowhere; SourceUnreadable; ConfigError for a pattern that matches too much.
        """
        candidates: dict[str, _Candidate] = {}
        for candidate in self._candidates():
            path = self._entry_path(candidate.place)
            if not self._is_never(candidate) and not is_excluded(path, candidate.is_directory):
                candidates.setdefault(candidate.place, candidate)
        roots: dict[str, Root] = {}
        taken: set[str] = set()
        for candidate in sorted(candidates.values(), key=lambda one: (one.real, one.is_link, one.place)):
            inside = any(place in candidates for place in _parents(candidate.place))
            place, real = candidate.place, candidate.real
            if candidate.leads_nowhere or real in taken or any(parent in taken for parent in _parents(real)):
                if inside or not candidate.is_link:
                    continue
                real = _real_parent(place)
            else:
                taken.add(real)
                place = real if inside else place
            path = self._entry_path(place)
            roots.setdefault(path, Root(path, real, candidate.required))
        return sorted(roots.values(), key=lambda root: order_key(root.path))

    def _candidates(self) -> Iterator[_Candidate]:
        for path in self._paths:
            place = self._place(path)
            directory, name = os.path.split(place)
            if (candidate := _look(place, required=not self._optional)) is not None:
                if candidate.leads_nowhere:
                    raise SourceMissing(
                        f"{shown(place)} is a link to {shown(candidate.real)}, which is not there",
                        hint="Mount or bring back what it leads to, or remove the link.",
                    )
                yield candidate
            elif any(sign in name for sign in "*?["):
                for found in self._matching(directory, name):
                    if (candidate := _look(os.path.join(directory, found), required=False)) is not None:
                        yield candidate
            else:
                self._miss(place)

    def _matching(self, directory: str, pattern: str) -> Iterator[str]:
        match = compile_name(pattern).fullmatch
        count = 0
        try:
            with os.scandir(directory) as listing:
                for found in listing:
                    name = found.name
                    if not match(name) or (name.startswith(".") and not pattern.startswith(".")):
                        continue
                    count += 1
                    if count > MATCHES_MAX:
                        raise ConfigError(
                            f"{shown(os.path.join(directory, pattern))} matches more than {MATCHES_MAX} files",
                            hint="Name the directory instead, with excludes for what need not be kept.",
                        )
                    yield name
        except (FileNotFoundError, NotADirectoryError):
            self._miss(directory)
        except OSError as error:
            raise failure(directory, error) from error

    def _miss(self, place: str) -> None:
        if not self._optional:
            raise SourceMissing(
                f"{shown(place)} is to be backed up and is not there",
                hint="Bring it back or mount it, or take it out of holdfast.toml.",
            )

    def _place(self, path: str) -> str:
        """`path` as an absolute one. Where it goes up again, links on the way are resolved first, as the
        system does it."""
        joined = os.path.join(self._service_roots[0], path)
        parts = path.rstrip("/").split("/")
        if ".." in parts:
            return os.path.realpath(joined) if parts[-1] == ".." else _real_parent(joined.rstrip("/"))
        return "/" + os.path.normpath(joined).lstrip("/")

    def _entry_path(self, place: str) -> str:
        for candidate in (place, _real_parent(place)):
            for service_root in self._service_roots:
                relative = below(candidate, service_root)
                if relative is not None:
                    return f"files/{relative}".rstrip("/")
        return f"absolute{place}".rstrip("/")

    def _is_never(self, candidate: _Candidate) -> bool:
        return (
            os.path.basename(candidate.place).startswith(STAGING_PREFIX)
            or candidate.real in self._never
            or any(parent in self._never for parent in _parents(candidate.real))
        )


def below(path: str, directory: str) -> str | None:
    """`path` relative to `directory`: empty when it is the same, None when it is not in it. Both absolute."""
    if path == directory:
        return ""
    start = directory.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None


def _look(place: str, *, required: bool) -> _Candidate | None:
    try:
        status = os.lstat(place)
        is_link = stat.S_ISLNK(status.st_mode)
        if is_link:
            status = os.stat(place)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise failure(place, error) from error
        if not os.path.islink(place):
            return None
        return _Candidate(place, os.path.realpath(place), True, False, True, required)
    return _Candidate(place, os.path.realpath(place), is_link, stat.S_ISDIR(status.st_mode), False, required)


def _real_parent(place: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
