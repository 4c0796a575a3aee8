"""A repository in memory whose objects have parity, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from conformance.ground import ignore_progress
from conformance.trees import Trees, file, models, noise, store
from holdfast.crypto import KeyRing, PassphraseIdentity, SealingWriter, X25519Identity
from holdfast.errors import HoldfastError
from holdfast.model import BackupMetadata
from holdfast.repository._parity import examine
from holdfast.repository._parity_storage import SUFFIX, ParityStorage
from holdfast.repository.dedup._key_file import IDENTITY as IDENTITY_FILE
from holdfast.repository.dedup.repository import DedupRepository
from holdfast.storage.memory import MemoryStorage
from repository.dedup.grounds import DedupGround

SECTOR = 4096
TREES = models(file("files/models/a", noise(200_000, 1)), file("files/models/b", b"text " * 20_000))
PASSPHRASE = PassphraseIdentity("a passphrase that is long enough")


@dataclass
class MendableGround(DedupGround):
    memory: MemoryStorage = field(default_factory=MemoryStorage)
    parity: bool = True
    told: list[str] = field(default_factory=list)

    def storage(self) -> ParityStorage:
        return ParityStorage(self.memory, writes=self.parity, told=self.told.append)

    def behind_a_passphrase(self) -> None:
        """As weak as can be: deriving a key takes a second else."""
        self.encrypt, self.keys = True, KeyRing((PASSPHRASE.recipient,), (PASSPHRASE,))
        upload = self.storage().create(IDENTITY_FILE)
        with SealingWriter(upload, [PASSPHRASE.recipient], work_factor=1) as writer:
            writer.write(X25519Identity(bytes(range(3, 35))).reveal().encode() + b"\n")
        upload.publish()

    def make(self, trees: Trees = TREES) -> BackupMetadata:
        metadata = store(self.repository(), trees)
        self.clock.forward()
        return metadata

    @property
    def objects(self) -> dict[str, bytes]:
        """All that is stored, parity included."""
        return self.memory._medium.objects

    def mismatched(self) -> list[str]:
        """Objects that are not what their parity is of, and parity without an object."""
        found = []
        for name in self.objects:
            whole = name.removesuffix(SUFFIX)
            if name.endswith(SUFFIX) and whole not in self.objects:
                found.append(name)
            elif name == whole:
                condition = examine(self.memory, name)
                if condition is not None and (condition.damage or condition.spoilt):
                    found.append(name)
        return found

    def bare(self) -> list[str]:
        """Objects without parity."""
        return [
            name for name in self.objects if not name.endswith(SUFFIX) and name + SUFFIX not in self.objects
        ]


def verdict(repository: DedupRepository, metadata: BackupMetadata) -> HoldfastError | None:
    """What `verify --deep` has to say."""
    try:
        repository.verify(metadata, deep=True, progress=ignore_progress)
    except HoldfastError as error:
        return error
    return None


def flip(bit: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        found = bytearray(data)
        found[bit // 8 % len(data)] ^= 1 << bit % 8
        return bytes(found)

    return damage


def lose_sector(number: int) -> Callable[[bytes], bytes]:
    """A sector of zeros."""

    def damage(data: bytes) -> bytes:
        found = bytearray(data)
        begin = number % -(-len(data) // SECTOR) * SECTOR
        end = min(begin + SECTOR, len(data))
        found[begin:end] = bytes(end - begin)
        return bytes(found)

    return damage


def lose_tail(count: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: max(len(data) - 1 - count % SECTOR, 0)]


def grow(count: int) -> Callable[[bytes], bytes]:
    return lambda data: data + bytes(1 + count % SECTOR)
