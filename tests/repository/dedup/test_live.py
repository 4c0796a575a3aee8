"""What is needed is told exactly, in memory that is bounded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from conformance.trees import as_stored, directory, file
from holdfast.model import BackupMetadata, SourceRecord
from holdfast.repository import _manifest as manifest
from holdfast.repository._manifest import ChunkRef, Header, PackRef
from holdfast.repository.dedup._live import LiveChunks
from holdfast.repository.dedup._manifest_object import ManifestReader, ManifestWriter
from holdfast.repository.dedup._pack_writer import PACK_SIZE
from holdfast.repository.dedup._sparse import JOINED, worth_rewriting
from holdfast.repository.dedup._survey import PackUse
from repository.dedup.sealed import Bytes

PACKS = [f"{digit}" * 32 + "-0" for digit in "abcdef"]
HASH = "0" * 64


def ids(*numbers: int) -> np.ndarray:
    return np.stack([np.frombuffer(number.to_bytes(32, "little"), np.uint8) for number in numbers])


class _Sink(io.BytesIO):
    size = 0


def take(live: LiveChunks, packs: Sequence[PackRef], chunks: Sequence[ChunkRef]) -> None:
    """The manifest of a backup of one file."""
    metadata = BackupMetadata(
        "full_20240101_020000",
        "2024-01-01T02:00:00",
        "1.0.0",
        "full",
        0,
        "",
        ("models",),
        "success",
        host="h",
        tool="t",
    )
    writer = ManifestWriter(Header.of(metadata, parent_manifest=None), repository="1" * 32, run="2" * 32)
    writer.write(manifest.source_line(("models", "main"), whole=True))
    writer.write(manifest.entry_line(directory("files/models").entry))
    lines = [chunks[start : start + 1024] for start in range(0, len(chunks), 1024)]
    writer.write(manifest.entry_line(as_stored(file("files/models/a", b"a")).entry, None, len(lines)))
    writer.writelines(manifest.chunks_line(line) for line in lines)
    sink = _Sink()
    record = SourceRecord("models", "main", "files", roots=("files/models",), entries=2, bytes=1)
    writer.finish(sink, (), packs, [record], coherent=None)  # type: ignore[arg-type]
    writer.close()
    with closing(ManifestReader(Bytes(sink.getvalue()), None, None, name="the manifest")) as reader:
        live.add_manifest(reader)


def refs(numbers: Sequence[int], pack: int) -> list[ChunkRef]:
    return [ChunkRef(1, number.to_bytes(32, "little").hex(), pack) for number in numbers]


def test_a_chunk_is_needed_where_a_backup_names_it_and_nowhere_else() -> None:
    live = LiveChunks()
    packs = [PackRef(name, 1, HASH) for name in PACKS[:2]]
    take(live, packs, [*refs(range(1, 3000), 0), *refs([5, 9000], 1)])
    assert live.outstanding() == {PACKS[0]: 2999, PACKS[1]: 2}
    assert live.needed(PACKS[0], ids(1, 5, 9000, 2999)).tolist() == [True, True, False, True]
    assert live.needed(PACKS[1], ids(1, 5, 9000, 2999)).tolist() == [False, True, True, False]


def test_the_same_line_counts_for_the_packs_of_each_backup() -> None:
    live = LiveChunks()
    chunks = refs(range(1, 1000), 0)
    for name in PACKS[:3]:
        take(live, [PackRef(name, 1, HASH), PackRef(PACKS[5], 1, HASH)], chunks)
    # As a backup numbers them that has the packs of another one, and more.
    take(live, [PackRef(name, 1, HASH) for name in (PACKS[2], PACKS[5], PACKS[4])], chunks)
    assert live.outstanding() == dict.fromkeys(PACKS[:3], 999)


def test_what_lies_where_a_mark_leads_is_not_needed_in_both() -> None:
    live = LiveChunks()
    live.add(PACKS[0], ids(1, 2, 3))
    live.move(PACKS[0], PACKS[1], ids(2, 3, 4))
    assert live.needed(PACKS[0], ids(1, 2, 3)).tolist() == [True, False, False]
    assert live.needed(PACKS[1], ids(2, 3, 4)).tolist() == [True, True, False]
    live.move(PACKS[1], PACKS[2], ids(2))
    assert live.outstanding() == {PACKS[0]: 1, PACKS[1]: 1, PACKS[2]: 1}


def use(size: int, live: float = 1.0) -> PackUse:
    return PackUse(PackRef("", 0, ""), size, int(size * live), 1, False)


def test_a_pack_is_written_anew_only_where_that_frees_or_joins_enough() -> None:
    half = PACK_SIZE // 2
    kept = [
        use(half),
        use(half, 0.67),
        use(1000, 0.67),
        *[use(5000)] * (JOINED - 1),
        *[use(100_000)] * (JOINED - 1),
    ]
    assert worth_rewriting(kept) == []
    sparse = [use(half, 0.66), use(1000, 0.5)]
    joined = [use(5000)] * JOINED
    assert worth_rewriting([*kept[:3], *sparse, *joined]) == [*sparse, *joined]


def test_hourly_backups_cost_each_byte_a_few_copies() -> None:
    """A thousand hours of packs of 20 KB, with a `gc` after each."""
    packs: list[int] = []
    written = 0
    for _ in range(1000):
        packs.append(20_000)
        chosen = [one.bytes for one in worth_rewriting([use(size) for size in packs])]
        for size in chosen:
            packs.remove(size)
        if chosen:
            packs.append(sum(chosen))
            written += sum(chosen)
    assert len(packs) < 5 * JOINED
    assert written < 4 * 1000 * 20_000
