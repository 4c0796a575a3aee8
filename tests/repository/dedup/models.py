"""Small files of the kinds that are cut at tensors, as the programs that write them do."""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    dtype: str
    shape: Sequence[int]
    data: bytes


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """By hand, since the library would sort the tensors; `test_cut` compares it with the library's own."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return with_header(json.dumps(header).encode(), b"".join(tensor.data for tensor in tensors.values()))


def with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(
    tensors: Mapping[str, tuple[int, Sequence[int], bytes]],
    *,
    version: int = 3,
    alignment: int | None = None,
    vocabulary: Sequence[str] = (),
    name: str = "test",
) -> bytes:
    """`tensors`: ggml type, dimensions, data."""
    pairs = [
        _string("general.name") + struct.pack("<I", 8) + _string(name),
        _string("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, len(vocabulary))
        + b"".join(map(_string, vocabulary)),
        _string("tokenizer.ggml.scores")
        + struct.pack("<IIQ", 9, 6, len(vocabulary))
        + bytes(4 * len(vocabulary)),
        _string("nested") + struct.pack("<IIQIQBB", 9, 9, 1, 7, 2, 0, 1),
        _string("context_length") + struct.pack("<IQ", 10, 4096),
    ]
    if alignment is not None:
        pairs.append(_string("general.alignment") + struct.pack("<II", 4, alignment))
    align = alignment or 32
    records, data = b"", b""
    for label, (kind, shape, values) in tensors.items():
        records += _string(label) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += values + bytes(-len(values) % align)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + records
    return head + bytes(-len(head) % align) + data


def torch_zip(members: Mapping[str, bytes], directory: str = "model") -> bytes:
    """As torch.save writes: stored, sizes only after the data, data at multiples of 64 by padding the extra field."""
    file = io.BytesIO()
    central = b""
    for label, data in members.items():
        at, name = file.tell(), f"{directory}/{label}".encode()
        padding = -(at + 30 + len(name) + 4) % 64
        crc = zlib.crc32(data)
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(name), 4 + padding))
        file.write(name + struct.pack("<2sH", b"FB", padding) + b"Z" * padding + data)
        file.write(struct.pack("<4s3I", b"PK\7\10", crc, len(data), len(data)))
        central += struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            0,
            0,
            0x0808,
            0,
            0,
            0,
            crc,
            len(data),
            len(data),
            len(name),
            *[0] * 5,
            at,
        )
        central += name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), len(central), file.tell(), 0)
    return file.getvalue() + central + end


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def database(rows: int, page_size: int = 4096) -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, score REAL, name TEXT)")
        connection.executemany(
            "INSERT INTO item VALUES (?, ?, ?)", ((n, n * 0.37, f"item number {n}") for n in range(rows))
        )
        connection.commit()
        return connection.serialize()
