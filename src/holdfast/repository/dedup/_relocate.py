"""The list of a backup, when `gc` has written some of its chunks to other packs since it was made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from holdfast.durable import private_file
from holdfast.model import BackupMetadata
from holdfast.repository import _lists as lists
from holdfast.repository import _manifest as manifest
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._memories import Memories
from holdfast.state import LocalState

_CHUNKS = b'{"chunks":'


def relocate(state: LocalState, metadata: BackupMetadata, found: ParentList, known: Memories) -> bool:
    """Writes a backup's list anew, so that it names only packs that are known; else the next run would read again
    what has not changed. `found`: that list. False when a chunk of it is not known to be anywhere.

    Raises StorageError, OSError.
    """
    sizes, hashes = known.packs(), known.hashes()
    packs = [pack if pack.name in sizes else PackRef(pack.name, 0, "") for pack in found.packs]
    numbers = {pack.name: number for number, pack in enumerate(packs) if pack.hash}

    def moved(line: bytes) -> bytes | None:
        chunks = manifest.parse_chunks(line)
        places = known.find_many([bytes.fromhex(chunk.id) for chunk in chunks])
        for at, place in enumerate(places):
            if packs[chunks[at].pack].hash:
                continue
            if place is None:
                return None
            number = numbers.get(place.pack)
            if number is None:
                number = numbers[place.pack] = len(packs)
                packs.append(PackRef(place.pack, sizes[place.pack], hashes[place.pack]))
            chunks[at] = chunks[at]._replace(pack=number)
        return manifest.chunks_line(chunks)

    with closing(private_file()) as rows:
        lines = lists.lines_of(state, metadata)
        head = next(lines)
        for line in lines:
            if manifest.parse_packs(line) is not None:
                continue
            changed = moved(line) if line.startswith(_CHUNKS) else line
            if changed is None:
                return False
            rows.write(changed)

        def all_lines() -> Iterator[bytes]:
            yield head
            yield from manifest.packs_lines(packs)
            rows.seek(0)
            yield from rows

        lists.save(state, metadata, all_lines())
    return True
