"""Proving a backup: every object that it needs, to the bit, and every entry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata
from holdfast.repository import _names as names
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._chunk_reader import KeysOf
from holdfast.repository.dedup._index_object import read_index
from holdfast.repository.dedup._key_file import IDENTITY
from holdfast.repository.dedup._names import index_path, object_name, pack_path
from holdfast.repository.dedup._stored import StoredManifest
from holdfast.repository.dedup._writer import MARK, check_mark
from holdfast.storage.base import Storage
from holdfast.streams import RandomAccess


def verify_packs(storage: Storage, packs: Sequence[PackRef], name: str) -> None:
    """Raises CorruptBackup for the first pack that is missing, or of another size."""
    for pack in packs:
        if not pack.hash:
            continue
        try:
            file = storage.open(pack_path(pack.name))
        except FileNotFoundError:
            raise CorruptBackup(f"pack {pack.name} is missing, which {name} needs") from None
        with file:
            if file.size != pack.size:
                raise CorruptBackup(
                    f"pack {pack.name}, which {name} needs, has {file.size} bytes instead of {pack.size}"
                )


def verify_keys(storage: Storage, packs: Sequence[PackRef], name: str) -> None:
    """Raises CorruptBackup when the key file of a run is missing that has written one of these packs."""
    there = {path.removeprefix("keys/").partition(".")[0] for path in storage.names("keys/")}
    needed = {pack.name.partition("-")[0] for pack in packs if pack.hash}
    if missing := needed - there:
        raise CorruptBackup(f"run {min(missing)} has no key file, which {name} needs")


def objects_of(
    storage: Storage, metadata: BackupMetadata, run: str, packs: Sequence[PackRef]
) -> Iterator[str]:
    """The names in the storage of all that a backup consists of, but for its manifest. `run`: that made it; `packs`:
    where its chunks are by now."""
    runs = {run, *(pack.name.partition("-")[0] for pack in packs)}
    yield MARK
    yield names.metadata_name(metadata.backup_id)
    for path in storage.names("keys/"):
        if path == IDENTITY or path.removeprefix("keys/").partition(".")[0] in runs:
            yield path
    yield from (pack_path(pack.name) for pack in packs)
    yield from indexes_of(storage, run)


def checksum_of(source: RandomAccess) -> str:
    """The SHA-256 of an object, hexadecimal."""
    digest = hashlib.sha256()
    for offset in range(0, source.size, 1 << 20):
        digest.update(source.read_at(offset, 1 << 20))
    return digest.hexdigest()


def indexes_of(storage: Storage, run: str) -> list[str]:
    """The names in the storage of a run's index objects."""
    found: list[str] = []
    while storage.exists(path := index_path(object_name(run, len(found)))):
        found.append(path)
    return found


def verify_manifest(
    storage: Storage,
    stored: StoredManifest,
    packs: Sequence[PackRef],
    keys_of: KeysOf,
    progress: Callable[[int], None],
) -> None:
    """Reads every entry, what else is in its packs, and the small objects of the run. Raises CorruptBackup."""
    check_mark(storage, stored.manifest.repository)
    keys = keys_of(stored.manifest.run)
    for path in indexes_of(storage, keys.run):
        with storage.open(path) as file:
            for _ in read_index(file, path.removeprefix("index/"), keys):
                pass
    for source in stored.sources():
        for entry in stored.entries(source):
            if entry.kind == "file":
                for piece in stored.read(entry):
                    progress(len(piece))
    stored.reader.prove(packs)
