"""The header of a GGUF file, versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Counts, then metadata (passed over, but for the alignment), then one record for each tensor. A tensor reaches to where
the next one begins: so no table of the sizes of all quantized types is needed, and the padding belongs to it.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from holdfast.repository.dedup._layout import ENDLESS, MAX_EXTENTS, Extent, Layout, tensor_label

_MAX_HEADER = 64 << 20
_MAX_PAIRS = 100_000
_MAX_NAME = 65_535
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 8
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32

_COUNT = struct.Struct("<Q")
_KIND = struct.Struct("<I")
_STRING, _ARRAY = 8, 9
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32 = 4
# ggml_type: F32, F16, I16, I32, I64, F64, BF16. The quantized types are blocks of mixed fields.
_ITEM = {0: 4, 1: 2, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}

_Parsing = Generator[None, memoryview, Layout]
_Step = Generator[None, memoryview, int]
_Skip = Generator[None, memoryview, None]


def looks_like_gguf(start: memoryview) -> bool:
    """Whether the first bytes of a file are those of GGUF in a version that is understood."""
    return bytes(start[:4]) == b"GGUF" and bytes(start[4:8]) in (b"\2\0\0\0", b"\3\0\0\0")


class GgufHeader:
    """Implements HeaderReader. Holds what is not parsed yet of the last bytes fed, and the tensors' records."""

    def __init__(self) -> None:
        self._window = b""
        self._position = 0
        self._before = 0
        self._parsing = self._parse()
        next(self._parsing)

    def feed(self, data: memoryview) -> Layout | None:
        try:
            self._parsing.send(data)
        except StopIteration as stop:
            layout: Layout = stop.value
            return layout
        return None

    def _parse(self) -> _Parsing:
        yield from self._skip(8)
        tensors = yield from self._number(_COUNT, MAX_EXTENTS)
        pairs = yield from self._number(_COUNT, _MAX_PAIRS)
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(pairs):
            key = yield from self._string()
            kind = yield from self._number(_KIND)
            if key == b"general.alignment" and kind == _UINT32:
                alignment = max(1, (yield from self._number(_KIND, _MAX_ALIGNMENT)))
            else:
                yield from self._pass_value(kind, 0)
        records = []
        for _ in range(tensors):
            records.append((yield from self._record()))
        header_end = -(-(self._before + self._position) // alignment) * alignment
        records.sort()
        ends = [offset for offset, _, _ in records[1:]] + [ENDLESS - header_end]
        return Layout(
            header_end,
            [
                Extent(header_end + begin, header_end + end, item_size, label)
                for (begin, item_size, label), end in zip(records, ends, strict=False)
            ],
        )

    def _record(self) -> Generator[None, memoryview, tuple[int, int, str]]:
        name = yield from self._string()
        dimensions = yield from self._number(_KIND, _MAX_DIMENSIONS)
        shape = []
        for _ in range(dimensions):
            shape.append((yield from self._number(_COUNT)))
        kind = yield from self._number(_KIND)
        offset = yield from self._number(_COUNT, ENDLESS // 2)
        label = tensor_label(name.decode("utf-8", "backslashreplace"), f"ggml{kind}", shape)
        return offset, _ITEM.get(kind, 1), label

    def _pass_value(self, kind: int, depth: int) -> _Skip:
        if kind in _FIXED:
            yield from self._skip(_FIXED[kind])
        elif kind == _STRING:
            yield from self._pass_strings(1)
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            kind = yield from self._number(_KIND)
            count = yield from self._number(_COUNT, _MAX_HEADER)
            if kind in _FIXED:
                yield from self._skip(count * _FIXED[kind])
            elif kind == _STRING:
                yield from self._pass_strings(count)
            else:
                for _ in range(count):
                    yield from self._pass_value(kind, depth + 1)
        else:
            raise ValueError("the metadata has a value of an unknown kind")

    def _pass_strings(self, count: int) -> _Skip:
        """Vocabularies have hundreds of thousands: the window is walked without a call for each."""
        while count:
            window, position = self._window, self._position
            last = len(window) - _COUNT.size
            while count and position <= last:
                position += _COUNT.size + _COUNT.unpack_from(window, position)[0]
                count -= 1
            self._position = min(position, len(window))
            yield from self._skip(position - self._position)
            if count:
                yield from self._need(_COUNT.size)

    def _string(self) -> Generator[None, memoryview, bytes]:
        length = yield from self._number(_COUNT, _MAX_NAME)
        yield from self._need(length)
        self._position += length
        return self._window[self._position - length : self._position]

    def _number(self, form: struct.Struct, limit: int = (1 << 64) - 1) -> _Step:
        yield from self._need(form.size)
        number: int = form.unpack_from(self._window, self._position)[0]
        self._position += form.size
        if number > limit:
            raise ValueError("a count is larger than any sensible one")
        return number

    def _skip(self, length: int) -> _Skip:
        while (there := len(self._window) - self._position) < length:
            length -= there
            self._position = len(self._window)
            yield from self._need(1)
        self._position += length

    def _need(self, length: int) -> _Skip:
        """Goes on when the window has `length` bytes more (64 KiB at most)."""
        while len(self._window) - self._position < length:
            self._before += self._position
            if self._before > _MAX_HEADER:
                raise ValueError("the header is longer than any sensible one")
            rest = self._window[self._position :]
            self._window, self._position = b"", 0
            data = yield
            self._window = rest + bytes(data)
