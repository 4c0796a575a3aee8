"""Where the tensors of a file lie, as its header says, and the protocol of what reads such a header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from blake3 import blake3

MAX_EXTENTS = 200_000
"""More tensors than this are cut as content of no known form: they would take too much memory."""

ENDLESS = 1 << 63
"""The end of what reaches to the end of the file, wherever that is."""

_MAX_LABEL = 200


class Extent(NamedTuple):
    """Where the data of one tensor lies: bytes from the start of the file."""

    begin: int
    end: int
    item_size: int
    tensor: str


class Layout(NamedTuple):
    """What a header says. Nothing in it is checked against the content that follows."""

    header_end: int
    extents: list[Extent]


class HeaderReader(Protocol):
    """Reads a header as it passes by."""

    def feed(self, data: memoryview) -> Layout | None:
        """Takes the next bytes of the file, some tens of KiB at a time; None when the header goes on.

        Raises ValueError when this is no such header, or one beyond all reason.
        """
        ...


def tensor_label(name: str, dtype: str, shape: Sequence[int]) -> str:
    """What the same tensor has in another version of a model, and no other tensor of it has.

    At most 200 characters that can be written as UTF-8.
    """
    dimensions = "x".join(map(str, shape))
    label = f"{name}:{dtype}:{dimensions}".encode("utf-8", "backslashreplace").decode()
    if len(label) <= _MAX_LABEL:
        return label
    digest = blake3(label.encode()).hexdigest(16)
    return f"{label[: _MAX_LABEL - len(digest) - 1]}#{digest}"
