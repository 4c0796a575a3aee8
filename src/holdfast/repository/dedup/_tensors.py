"""The tensors of a stored model file, told by its header and the ids of its chunks.

Each tensor is cut from its own beginning (`_cut.py`), so the same content has the same chunks wherever it lies, and
none of it need be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from blake3 import blake3

from holdfast.repository._manifest import ChunkRef
from holdfast.repository.base import Tensor
from holdfast.repository.dedup._headers import HEADER_STEP, header_reader
from holdfast.repository.dedup._layout import ENDLESS, Extent, Layout

_LABEL = re.compile(r"(.*):([^:]*):([0-9x]*)", re.DOTALL)
_GGML_NAMES = (
    "F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL "
    "IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
)
_GGML = {f"ggml{number}": name for number, name in enumerate(_GGML_NAMES.split()) if name != "-"}
"""By their numbers: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#file-structure"""


def tensors_of(
    chunks: Iterator[ChunkRef], size: int, read: Callable[[ChunkRef], bytes | memoryview]
) -> list[Tensor] | None:
    """The tensors of a file of `size` bytes, by name; None where it is no file of tensors, or was cut otherwise.

    Reads the chunks that the header lies in, and no others.
    """
    walk = _Walk(chunks)
    layout = _layout(walk, read)
    if layout is None:
        return None
    found: dict[str, Tensor] = {}
    for extent in sorted(layout.extents, key=lambda extent: (extent.begin, extent.end)):
        content = walk.content(extent, size)
        tensor = _named(extent, content) if content is not None else None
        if tensor is None or tensor.name in found:
            return None
        found[tensor.name] = tensor
    return sorted(found.values())


class _Walk:
    """A file's chunks, from front to back."""

    def __init__(self, chunks: Iterator[ChunkRef]) -> None:
        self._chunks = chunks
        self.at = 0

    def next(self) -> ChunkRef | None:
        chunk = next(self._chunks, None)
        self.at += chunk.length if chunk is not None else 0
        return chunk

    def content(self, extent: Extent, size: int) -> bytes | None:
        """What stands for the content of an extent; None where it is not cut at its ends."""
        end = size if extent.end == ENDLESS else extent.end
        while self.at < extent.begin and self.next() is not None:
            pass
        if self.at != extent.begin:
            return None
        digest = blake3()
        while self.at < end and (chunk := self.next()) is not None:
            digest.update(bytes.fromhex(chunk.id))
        return digest.digest(16) if self.at == end else None


def _layout(walk: _Walk, read: Callable[[ChunkRef], bytes | memoryview]) -> Layout | None:
    reader = None
    while (chunk := walk.next()) is not None:
        data = memoryview(read(chunk))
        if reader is None and (reader := header_reader(data)) is None:
            return None
        try:
            for begin in range(0, len(data), HEADER_STEP):
                if layout := reader.feed(data[begin : begin + HEADER_STEP]):
                    return layout
        except ValueError:
            return None
    return None


def _named(extent: Extent, content: bytes) -> Tensor:
    label = _LABEL.fullmatch(extent.tensor)
    if label is None:  # It was too long, and ends in a digest of all three.
        return Tensor(extent.tensor, "", "", content)
    name, dtype, shape = label.groups()
    if dtype.startswith("ggml"):
        dtype = _GGML.get(dtype, dtype)
    return Tensor(name, dtype, shape, content)
