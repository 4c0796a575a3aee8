"""What the header of a model file says, compared with the file, while it is restored.

Digests prove that a file is as it was backed up. A download that was cut short before the backup has a good digest
and no use: its header tells. Formats:

- safetensors: https://huggingface.co/docs/safetensors/index#format
- GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
- npy, npz: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.errors import CorruptBackup
from holdfast.events import Emit, Warned
from holdfast.model import Entry
from holdfast.text import harmless, shown

_START = 24
"""Bytes from which every format here tells what it is."""
_LONGEST_HEADER = 100_000_000
"""Bytes. The library safetensors refuses a longer one."""
_READ_HEADER = 8 << 20
"""Bytes. That is some 80,000 tensors; what is longer is not held in memory."""
_MAX_DIMENSIONS = 64
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Of an element. Of a type that is not here the size is not known, and not compared."""
_LEAST_TENSOR, _LEAST_PAIR = 24, 13
"""Bytes that a tensor's record, and a key with its value, take at least in a GGUF of version 2 or 3."""

_Check = Callable[[bytes, int], str]
"""Looks at the beginning of a file of so many bytes. Returns why it could not be told whether it is good; empty when
it is. Raises TypeError or ValueError when it is not."""


class ModelCheck:
    """Looks at model files as they pass."""

    def __init__(self, emit: Emit) -> None:
        self.checked = 0
        """Model files whose header is good."""
        self._emit = emit

    def watch(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Gives the pieces of a file on, and raises CorruptBackup after the last one where its header is not that
        of a whole model file. A file that is no model by its name passes."""
        check = _FORMS.get(entry.path.lower().rpartition(".")[2])
        if check is None:
            yield from pieces
            return
        head = _Head(grows=check is _check_safetensors)
        for piece in pieces:
            head.take(memoryview(piece))
            yield piece
        self._judge(check, entry, bytes(head.data))

    def _judge(self, check: _Check, entry: Entry, head: bytes) -> None:
        try:
            unknown = check(head, entry.size)
        except (TypeError, ValueError, RecursionError) as error:
            raise CorruptBackup(
                f"{shown(entry.path)} is not a whole model file: {harmless(str(error))[:200]}",
                hint="Its content is as it was backed up, so it was so then. Look at the live file; an older backup "
                "may have a good one.",
            ) from error
        if unknown:
            self._emit(Warned(f"{shown(entry.path)}: its header is not checked: {unknown}"))
        else:
            self.checked += 1


class _Head:
    """The first bytes of a file; with `grows`, all of a safetensors header."""

    def __init__(self, *, grows: bool) -> None:
        self.data = bytearray()
        self._wanted = _START
        self._grows = grows

    def take(self, piece: memoryview) -> None:
        while piece and (missing := self._wanted - len(self.data)) > 0:
            self.data += piece[:missing]
            piece = piece[missing:]
            if self._grows and len(self.data) >= 8:
                length = int.from_bytes(self.data[:8], "little")
                self._wanted = 8 + length if length <= _READ_HEADER else _START
                self._grows = False


def _check_safetensors(head: bytes, size: int) -> str:
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    if length > _LONGEST_HEADER:
        raise ValueError("its header is longer than safetensors allows")
    if length > _READ_HEADER:
        return f"it has {length} bytes, and up to {_READ_HEADER} are read"
    tensors = json.loads(head[8 : 8 + length])
    if not isinstance(tensors, dict):
        raise TypeError("its header is not an object")
    spans = sorted(_span(name, tensor) for name, tensor in tensors.items() if name != "__metadata__")
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise ValueError(f"tensor {name!r:.80} begins at {begin}, and what is before it ends at {end}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, and {size - 8 - length} are there")
    return ""


def _span(name: str, tensor: Any) -> tuple[int, int, str]:
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            if len(shape) > _MAX_DIMENSIONS or not all(
                type(number) is int and 0 <= number < 1 << 63 for number in (begin, end, *shape)
            ):
                raise ValueError(f"tensor {name!r:.80} has no sensible shape or place")
            bits = _BITS.get(dtype)
            if end < begin or (bits is not None and math.prod(shape) * bits != (end - begin) * 8):
                raise ValueError(f"tensor {name!r:.80} does not have the bytes of its type and shape")
            return begin, end, name
    raise ValueError(f"tensor {name!r:.80} has no type, shape and place")


def _check_gguf(head: bytes, size: int) -> str:
    if head[:4] != b"GGUF":
        raise ValueError("it does not begin as GGUF does")
    if len(head) < _START:
        raise ValueError("it ends within its header")
    order = ">" if head[4:7] == b"\0\0\0" else "<"
    version, tensors, pairs = struct.unpack_from(f"{order}IQQ", head, 4)
    if version == 1:  # Its counts are of 32 bits, and its records of other sizes.
        return ""
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is unknown")
    if tensors * _LEAST_TENSOR + pairs * _LEAST_PAIR > size - _START:
        raise ValueError(f"it is too short for the {tensors} tensors that it says it has")
    return ""


def _check_npy(head: bytes, size: int) -> str:
    if head[:6] != b"\x93NUMPY" or head[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("it does not begin as an array of NumPy does")
    return ""


def _check_npz(head: bytes, size: int) -> str:
    if head[:4] not in (b"PK\3\4", b"PK\5\6"):
        raise ValueError("it does not begin as a zip archive does")
    return ""


_FORMS: dict[str, _Check] = {
    "safetensors": _check_safetensors,
    "gguf": _check_gguf,
    "npy": _check_npy,
    "npz": _check_npz,
}
"""By the end of the name."""
