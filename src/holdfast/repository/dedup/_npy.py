"""The header of a .npy file: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""

from __future__ import annotations

import re

from holdfast.repository.dedup._layout import ENDLESS, Extent, Layout, tensor_label
from holdfast.repository.dedup._planes import ITEM_SIZES

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 64 << 10
_DTYPE = re.compile(rb"'descr': '([<>|=])([fiubc])(\d{1,2})'")
_SHAPE = re.compile(rb"'shape': \(([\d, ]{0,400})\)")


def looks_like_npy(start: memoryview) -> bool:
    """Whether the first bytes of a file are those of .npy in a version that is understood."""
    return bytes(start[:6]) == _MAGIC and len(start) > 8 and start[6] in (1, 2, 3)


class NpyHeader:
    """Implements HeaderReader. The array is one tensor, which reaches to the end of the file."""

    def __init__(self) -> None:
        self._header = bytearray()

    def feed(self, data: memoryview) -> Layout | None:
        self._header += data[: _MAX_HEADER + 12 - len(self._header)]
        if len(self._header) < 12:
            return None
        width = 2 if self._header[6] == 1 else 4
        end = 8 + width + int.from_bytes(self._header[8 : 8 + width], "little")
        if end > _MAX_HEADER:
            raise ValueError("the header is longer than any sensible one")
        if len(self._header) < end:
            return None
        text = bytes(self._header[:end])
        dtype, shape = _DTYPE.search(text), _SHAPE.search(text)
        if dtype is None or shape is None:
            raise ValueError("the array does not hold numbers")
        # A complex number is two items.
        item_size = int(dtype[3]) // (2 if dtype[2] == b"c" else 1)
        label = tensor_label(
            "npy",
            (dtype[1] + dtype[2] + dtype[3]).decode(),
            [int(n) for n in shape[1].split(b",") if n.strip()],
        )
        return Layout(end, [Extent(end, ENDLESS, item_size if item_size in ITEM_SIZES else 1, label)])
