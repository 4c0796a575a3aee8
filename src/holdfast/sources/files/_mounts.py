"""Mount points: directories that cannot be renamed, and must not be renamed along with others."""

from __future__ import annotations

import os
import re

_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_points() -> frozenset[str]:
    """Real paths of what is mounted in this process's view, on Linux; elsewhere nothing is known.

    ``os.path.ismount`` sees none that shows another directory of the same file system (a bind mount, which a
    container's volume often is). Format: proc_pid_mountinfo(5); the fifth field is the path.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            paths = [line.split(" ")[4] for line in table]
    except OSError:
        return frozenset()
    return frozenset(_OCTAL.sub(lambda match: chr(int(match[1], 8)), path) for path in paths)


def is_mount_point(path: str, known: frozenset[str]) -> bool:
    """Whether something is mounted at a real path."""
    return path in known or os.path.ismount(path)
