"""The header of a safetensors file: https://huggingface.co/docs/safetensors/index#format

Eight bytes of length, little-endian, then JSON: ``{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, …}``.
Offsets count from the end of the header. The members are read one by one, so that memory holds what they say and
never the whole header.
"""

from __future__ import annotations

import codecs
import json
import math
import re

from holdfast.repository.dedup._layout import MAX_EXTENTS, Extent, Layout, tensor_label

_MAX_HEADER = 16 << 20
_MAX_MEMBER = 1 << 20
_MAX_DIMENSIONS = 64

# Bytes of an item; a complex number is two items.
_ITEM = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "C64": 4} | dict.fromkeys(
    ("BF16", "F16", "I16", "U16"), 2
)
# Bits of an element, where it is not one item.
_BITS = {"C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

_PUNCTUATION = re.compile(r"[ \t\r\n]*([{,:}])[ \t\r\n]*")
_JSON = json.JSONDecoder()


def looks_like_safetensors(start: memoryview) -> bool:
    """Whether the first bytes of a file (16 or more) may begin a header that is worth reading."""
    return len(start) > 9 and start[8] == ord("{") and 2 <= int.from_bytes(start[:8], "little") <= _MAX_HEADER


class SafetensorsHeader:
    """Implements HeaderReader."""

    def __init__(self) -> None:
        self._length = bytearray()
        self._left = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._opened = False
        self._retry_at = 0
        self._extents: list[Extent] = []

    def feed(self, data: memoryview) -> Layout | None:
        if missing := 8 - len(self._length):
            self._length += data[:missing]
            data = data[missing:]
            if len(self._length) < 8:
                return None
            self._left = int.from_bytes(self._length, "little")
            self._header_end = 8 + self._left
            if self._left > _MAX_HEADER:
                raise ValueError("the header is longer than any sensible one")
        data = data[: self._left]
        self._left -= len(data)
        try:
            self._text += self._decoder.decode(data, final=not self._left)
            closed = (not self._left or len(self._text) >= self._retry_at) and self._read_members()
        except RecursionError as error:
            raise ValueError("the header is nested too deeply") from error
        if not self._left and closed:
            return Layout(self._header_end, self._extents)
        if not self._left or closed or len(self._text) > _MAX_MEMBER or len(self._extents) > MAX_EXTENTS:
            raise ValueError("the header is not one of safetensors")
        return None

    def _read_members(self) -> bool:
        """Takes whole members off the text. True when the object is closed; only padding may follow."""
        at = 0
        while (mark := _PUNCTUATION.match(self._text, at)) is not None:
            if mark[1] == "}":
                # What follows is spaces, and may come in the next piece.
                return self._opened and not self._text[mark.end() :].strip() and not self._left
            if mark[1] != (",", "{")[not self._opened]:
                raise ValueError("the header is no object")
            if (end := self._read_member(mark.end())) is None:
                break
            self._opened = True
            at = end
        self._text = self._text[at:]
        # A long member that is not all there is not tried again for every few bytes more of it.
        self._retry_at = min(2 * len(self._text), _MAX_MEMBER)
        return False

    def _read_member(self, at: int) -> int | None:
        """The end of the member that begins `at`; None when it is not all there."""
        if self._text.startswith("}", at):
            self._opened = True
            return at
        try:
            name, at = _JSON.raw_decode(self._text, at)
            colon = _PUNCTUATION.match(self._text, at)
            if colon is None:
                return None
            value, end = _JSON.raw_decode(self._text, colon.end())
        except json.JSONDecodeError:
            return None
        if colon[1] != ":" or not isinstance(name, str):
            raise ValueError("the header has a member without a name")
        if name != "__metadata__" and (extent := self._extent(name, value)) is not None:
            self._extents.append(extent)
        return end

    def _extent(self, name: str, value: object) -> Extent | None:
        """None when what it says makes no sense: then those bytes are content of no known form."""
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                numbers = [begin, end, *shape]
                if len(shape) > _MAX_DIMENSIONS or not all(
                    type(n) is int and 0 <= n < 1 << 63 for n in numbers
                ):
                    return None
                item_size = _ITEM.get(dtype, 1)
                if (end - begin) * 8 != math.prod(shape) * _BITS.get(dtype, item_size * 8):
                    return None
                start = self._header_end
                return Extent(start + begin, start + end, item_size, tensor_label(name, dtype, shape))
        return None
