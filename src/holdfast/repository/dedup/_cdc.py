"""Content of no known form, cut where the content says so (FastCDC).

Where a cut lies depends on the bytes just before it, so what is inserted or removed changes the chunks around it, and
no others. The places also depend on a key, which chooses one of 2^63 tables.

What the key is worth: without one, anybody who sees the lengths of chunks can tell whether a file that he has lies in
the repository. With one, he cannot cut that file by himself. But who knows some of the content as well, and sees the
lengths of its chunks, can work the key out: what chooses the places is a sum, not a cipher (Truong and others,
"Breaking and Fixing Content-Defined Chunking": https://blog.ktruong.dev/breaking-cdc). So the key is no substitute
for hiding lengths: packs must do that where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from blake3 import blake3
from pyfastcdc import FastCDC

from holdfast.errors import ConfigError

MIN_CHUNK = 16 << 10
MAX_CHUNK = 256 << 10
_USUAL_CHUNK = 64 << 10
# On logs and on noise, one edit makes 74 to 79 KB new with 3, 79 to 87 KB with 2, 103 KB with 1.
_NORMALIZATION: Literal[3] = 3
_CONTEXT = "holdfast dedup chunk boundaries"

if "cy" not in FastCDC.__module__:
    raise ConfigError(
        "pyfastcdc runs without its compiled part, forty times slower",
        hint="Reinstall pyfastcdc from a wheel, or with a C compiler at hand.",
    )


def cut_by_content(readinto: Callable[[memoryview], int], key: bytes) -> Iterator[memoryview]:
    """Chunks of 16 to 256 KiB, the last one perhaps smaller.

    `readinto` fills a buffer and says how many bytes it holds now, 0 at the end. A chunk is valid until the next one
    is asked for. `key` has 32 bytes.
    """
    # pyfastcdc refuses a seed of 64 bits.
    seed = int.from_bytes(blake3(key, derive_key_context=_CONTEXT).digest(8), "little") >> 1
    cutter = FastCDC(
        _USUAL_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK, normalized_chunking=_NORMALIZATION, seed=seed
    )
    for chunk in cutter.cut_stream(_Reader(readinto)):
        yield chunk.data


class _Reader:
    """What the chunker wants to read from."""

    def __init__(self, readinto: Callable[[memoryview], int]) -> None:
        self.readinto = readinto
