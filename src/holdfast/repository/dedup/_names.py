"""Names of the objects that a run writes. No path is built from a name that is not well formed."""

from __future__ import annotations

import re

from holdfast.errors import CorruptBackup

_RUN = re.compile(r"[0-9a-f]{32}")
_OBJECT = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,9})")
NUMBER_LIMIT = 1 << 32


def is_run(text: object) -> bool:
    """Whether `text` is a run's name: 32 hexadecimal digits. Repository ids are of the same form."""
    return isinstance(text, str) and _RUN.fullmatch(text) is not None


def object_name(run: str, number: int) -> str:
    """The name of a run's pack, or of its index object. Raises ValueError for what cannot be one."""
    if not is_run(run) or not 0 <= number < NUMBER_LIMIT:
        raise ValueError(f"{run!r:.80} has no object {number!r:.80}")
    return f"{run}-{number}"


def is_object_name(text: str) -> bool:
    """Whether `text` is the name of a pack, or of an index object."""
    try:
        parse_object_name(text)
    except CorruptBackup:
        return False
    return True


def parse_object_name(name: object) -> tuple[str, int]:
    """The run and the number in the name of a pack or an index object. Raises CorruptBackup."""
    match = _OBJECT.fullmatch(name) if isinstance(name, str) else None
    if match is None or int(match[2]) >= NUMBER_LIMIT:
        raise CorruptBackup(f"{name!r:.80} is not the name of a pack or of an index object")
    return match[1], int(match[2])


def pack_path(name: str) -> str:
    """Where a pack lies in the storage."""
    parse_object_name(name)
    return f"packs/{name[:2]}/{name}"


def index_path(name: str) -> str:
    """Where an index object lies in the storage."""
    parse_object_name(name)
    return f"index/{name}"
