"""A model's weights in half the bytes, and what zstd makes of a file: `python -m bench.real_weights bf16|zstd …`."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from bench.data import to_bf16

_HEADER_LIMIT = 100_000_000  # bytes: what safetensors itself allows


def as_bf16(source: Path) -> Iterator[bytes]:
    """A safetensors file whose fp32 tensors are bf16, rounded to the nearest, ties to even; others as they are."""
    with source.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT:
            raise ValueError(f"{source} is no safetensors file")
        header = json.loads(file.read(length))
        names = sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
        spans = {name: header[name]["data_offsets"] for name in names}
        end = 0
        for name in names:
            start, stop = spans[name]
            is_float = header[name]["dtype"] == "F32"
            size = (stop - start) // 2 if is_float else stop - start
            header[name] |= {"data_offsets": [end, end + size]} | ({"dtype": "BF16"} if is_float else {})
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text
        for name in names:
            start, stop = spans[name]
            file.seek(8 + length + start)
            data = file.read(stop - start)
            is_float = header[name]["dtype"] == "BF16"
            yield to_bf16(np.frombuffer(data, np.float32)).tobytes() if is_float else data


def zstd_size(path: Path, level: int = 3) -> int:
    """Bytes that a file has in zstd."""
    squeezer = zstandard.ZstdCompressor(level=level).compressobj()
    with path.open("rb") as file:
        size = sum(len(squeezer.compress(block)) for block in iter(lambda: file.read(1 << 20), b""))
    return size + len(squeezer.flush())


def main() -> None:
    verb, *paths = sys.argv[1:]
    if verb == "bf16":
        source, target = map(Path, paths)
        with target.open("xb") as file:
            file.writelines(as_bf16(source))
    else:
        print(zstd_size(Path(*paths)))


if __name__ == "__main__":
    main()
