"""Whether an object is what was stored, as far as this host can tell: the check before it is mended for good.

A pack tells by its own digest, and a manifest by the checksum in its metadata: to a host that can write and not read
as well. Such a host knows its own key files again. Those of others, and index objects, have to be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blake3 import blake3

from holdfast.crypto import KeyRing
from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata
from holdfast.repository import _names as names
from holdfast.repository._catalog import METADATA_LIMIT, parse_metadata
from holdfast.repository.dedup._chunk_reader import KeysOf
from holdfast.repository.dedup._index_object import read_index
from holdfast.repository.dedup._key_file import IDENTITY, parse_identity, parse_run_keys
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._names import parse_object_name
from holdfast.repository.dedup._seal import header
from holdfast.repository.dedup._table import PACK_END, PACK_MAGIC
from holdfast.repository.dedup._verify import checksum_of
from holdfast.repository.dedup._writer import MARK, passphrases, prove_mark
from holdfast.streams import RandomAccess

_PIECE = 4 << 20
_DIGEST_LENGTH = 32


class Proof:
    """What this host can prove of the objects of a repository."""

    def __init__(
        self,
        *,
        repository: str,
        keys: Callable[[], KeyRing],
        opened: Callable[[], KeyRing],
        keys_of: KeysOf,
        metadata_of: Callable[[str], BackupMetadata | None],
        known: Mapping[str, str],
    ) -> None:
        """`keys`: as they are configured; `opened`: with the repository's identity in place of a passphrase.
        `metadata_of`: that of a backup's id, if it can be read. `known`: SHA-256 of objects that this host remembers,
        by their names."""
        self._repository = repository
        self._keys = keys
        self._opened = opened
        self._keys_of = keys_of
        self._metadata_of = metadata_of
        self._known = known

    def check(self, name: str, source: RandomAccess) -> None:
        """Raises CorruptBackup when an object is not what its name says; CredentialError when that takes a key that
        is not here."""
        if name in self._known and checksum_of(source) == self._known[name]:
            return
        if name == MARK:
            prove_mark(source.read_at(0, METADATA_LIMIT))
        elif name == IDENTITY:
            parse_identity(source, passphrases(self._keys()))
        elif name.startswith("keys/"):
            identities = () if name.endswith(".json") else self._opened().identities
            parse_run_keys(source, name, identities, repository=self._repository)
        elif name.startswith("packs/"):
            check_pack(source, name.rpartition("/")[2])
        elif name.startswith("index/"):
            self._check_index(name.removeprefix("index/"), source)
        elif (backup_id := names.manifest_id(name)) is not None:
            self._check_manifest(name, backup_id, source)
        else:
            parse_metadata(source.read_at(0, METADATA_LIMIT + 1), name)

    def _check_index(self, name: str, source: RandomAccess) -> None:
        for _ in read_index(source, name, self._keys_of(parse_object_name(name)[0])):
            pass

    def _check_manifest(self, name: str, backup_id: str, source: RandomAccess) -> None:
        metadata = self._metadata_of(backup_id)
        if metadata is None:
            ManifestReader(source, None, self._opened(), name=name).close()
        elif checksum_of(source) != metadata.checksum:
            raise CorruptBackup(f"{name} does not have the checksum of its metadata")


def check_pack(source: RandomAccess, name: str) -> None:
    """Raises CorruptBackup when a pack does not begin as its name says, or its digest is another one. Needs no key:
    who could forge that could store the pack."""
    run, number = parse_object_name(name)
    begin = header(PACK_MAGIC, run, number)
    digest = blake3(max_threads=blake3.AUTO)
    end = source.size - _DIGEST_LENGTH - len(PACK_END)
    if source.read_at(0, len(begin)) == begin and end > len(begin):
        for offset in range(0, end, _PIECE):
            digest.update(source.read_at(offset, min(_PIECE, end - offset)))
        if source.read_at(end, _DIGEST_LENGTH + len(PACK_END)) == digest.digest() + PACK_END:
            return
    raise CorruptBackup(f"pack {name} is damaged")
