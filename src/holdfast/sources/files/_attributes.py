"""What a file or directory has beside its content: mode, owner, time, extended attributes."""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from holdfast.model import Entry
from holdfast.sources.files._content import read_xattrs


class Attributes(NamedTuple):
    """See the fields of the same names in `Entry`."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes] | None

    @classmethod
    def of_entry(cls, entry: Entry) -> Attributes:
        return cls(entry.mode & 0o7777, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)

    @classmethod
    def of_open(cls, descriptor: int) -> Attributes:
        """Those of an open file or directory. Raises OSError."""
        status = os.fstat(descriptor)
        xattrs = read_xattrs(descriptor)
        return cls(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)

    def to_json(self) -> dict[str, Any]:
        xattrs = {name: base64.b64encode(value).decode() for name, value in (self.xattrs or {}).items()}
        return {**self._asdict(), "xattrs": xattrs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Attributes:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        mode, uid, gid, mtime_ns = (int(data[name]) for name in ("mode", "uid", "gid", "mtime_ns"))
        xattrs = {name: base64.b64decode(value) for name, value in data["xattrs"].items()}
        return cls(mode & 0o7777, uid, gid, mtime_ns, xattrs)


Excuse = Callable[[str, str], None]
"""Is told what could not be given back, and to which path."""


class AttributeWriter:
    """Gives files and directories their attributes back, as far as we may."""

    def __init__(self, tell: Excuse) -> None:
        self._tell = tell
        self._euid = os.geteuid()
        self._groups = {os.getegid(), *os.getgroups()}

    def write(self, descriptor: int, attributes: Attributes, path: str) -> None:
        """Sets what an open file or directory of ours has beside its content. Raises OSError."""
        # In this order: a change of owner takes away set-uid and capabilities.
        mode, uid, gid, mtime_ns, xattrs = attributes
        mode &= ~self._own(descriptor, uid, gid, path)
        if xattrs:
            self._set_xattrs(descriptor, xattrs, path)
        os.fchmod(descriptor, mode)
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))

    def write_link(self, name: str, directory: int, attributes: Attributes, path: str) -> None:
        """The same for a symbolic link in an open directory, which has no mode of its own. Raises OSError."""
        if self._euid == 0:
            try:
                os.chown(name, attributes.uid, attributes.gid, dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                self._excuse(error, "owners", path)
        if attributes.xattrs:
            self._tell("extended attributes of links", path)
        mtime_ns = attributes.mtime_ns
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _own(self, descriptor: int, uid: int, gid: int, path: str) -> int:
        """Gives the owner back. Returns the mode bits that must not be: set-uid is the owner's to grant."""
        if self._euid == 0:
            try:
                os.fchown(descriptor, uid, gid)
            except OSError as error:
                self._excuse(error, "owners", path)
                return stat.S_ISUID | stat.S_ISGID
            return 0
        forbidden = 0
        if uid != self._euid:
            self._tell("owners", path)
            forbidden = stat.S_ISUID
        if gid not in self._groups:
            self._tell("owners", path)
            return forbidden | stat.S_ISGID
        os.fchown(descriptor, -1, gid)
        return forbidden

    def _set_xattrs(self, descriptor: int, xattrs: dict[str, bytes], path: str) -> None:
        if not hasattr(os, "setxattr"):
            self._tell("extended attributes", path)
            return
        for name, value in xattrs.items():
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                self._excuse(error, "extended attributes", path)

    def _excuse(self, error: OSError, what: str, path: str) -> None:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL):
            raise error
        self._tell(what, path)
