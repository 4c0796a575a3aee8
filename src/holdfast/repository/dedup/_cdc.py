"""Content of no known form, cut where the content says so (FastCDC).

Where a cut lies depends on the bytes just before it, so what is inserted or removed changes the chunks around it and no
others. The places also depend on a key, which chooses one of 2^64 tables.

What the key is worth: without one, anybody who sees the lengths of chunks can tell whether a file that he has lies in
the repository. With one, he cannot cut that file by himself. But he who also gets content of his choice stored, and sees
the lengths of its chunks, can work the table out: the function is linear, not a cipher
(https://eprint.iacr.org/2025/532). So the key is no substitute for hiding lengths: packs must do that where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blake3 import blake3
from pyfastcdc import FastCDC

from holdfast.errors import ConfigError

MIN_CHUNK = 16 << 10
MAX_CHUNK = 256 << 10
_USUAL_CHUNK = 64 << 10

if "cy" not in FastCDC.__module__:
    raise ConfigError(
        "pyfastcdc runs without its compiled part, forty times slower",
        hint="Reinstall pyfastcdc from a wheel, or with a C compiler at hand.",
    )


def cut_by_content(readinto: Callable[[memoryview], int], key: bytes) -> Iterator[memoryview]:
    """Chunks of 16 to 256 KiB, the last one perhaps smaller.

    `readinto` fills a buffer and says how many bytes it holds now, 0 at the end. A chunk is valid until the next one is
    asked for. `key` has 32 bytes, and nobody without it can foretell where cuts fall.
    """
    seed = int.from_bytes(blake3(key, derive_key_context="holdfast dedup 2026 chunk boundaries").digest(8))
    cutter = FastCDC(
        _USUAL_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK, normalized_chunking=_NORMALIZATION, seed=seed
    )
    for chunk in cutter.cut_stream(_Reader(readinto)):
        yield chunk.data


_NORMALIZATION = 1


class _Reader:
    """What the chunker wants to read from."""

    def __init__(self, readinto: Callable[[memoryview], int]) -> None:
        self.readinto = readinto
