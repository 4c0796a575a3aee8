"""Several hosts that write to one storage in memory, and a model of what each backup must give back."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from conformance.ground import ignore_progress
from conformance.trees import (
    Clock,
    Trees,
    assert_holds,
    content_of,
    file,
    models,
    noise,
    plan_of,
    record,
)
from forks import scratch
from holdfast.crypto import KeyRing, SigningKey, verify
from holdfast.model import BackupMetadata, Signature, is_unchanged
from holdfast.repository._seal import Seal
from holdfast.repository.dedup.repository import DedupRepository
from holdfast.state import LocalState
from holdfast.storage.memory import Faults, MemoryStorage
from repository.archive.archives import IDENTITY

DAY = 25 * 3600


@dataclass
class Host:
    """One that writes and reads, with its own local state and signing key."""

    world: World
    number: int
    signing: SigningKey = field(default_factory=SigningKey.generate)
    keys: KeyRing = field(default_factory=lambda: KeyRing((IDENTITY.recipient,), (IDENTITY,)))
    last: BackupMetadata | None = None

    @property
    def state(self) -> LocalState:
        top = self.world.top / f"host{self.number}"
        environ = {"XDG_STATE_HOME": str(top / "state")}
        return LocalState.locate(environ, root=top / "service", backup_dir=self.world.top / "backups")

    def repository(
        self, faults: Faults | None = None, *, between: Callable[[], None] | None = None
    ) -> DedupRepository:
        """As a process that has just started sees it. `between` is called before it asks anything of the storage."""
        storage: Any = self.world.storage.beside(faults)
        return DedupRepository(
            storage if between is None else _Interrupted(storage, between),
            self.state,
            Seal(encrypt=True, keys=lambda: self.keys, sign=self._sign, believes=self.world.believes),
            writer=lambda: self.signing.public,
            locate=lambda path: None,
            host=f"host{self.number}",
            tool="holdfast 1",
            clock=self.world.clock,
        )

    def _sign(self, statement: bytes) -> Signature:
        return Signature(self.signing.public, self.signing.sign(statement))


class _Interrupted:
    """A storage, and what happens between one call and the next."""

    def __init__(self, storage: MemoryStorage, between: Callable[[], None]) -> None:
        self._storage = storage
        self._between = between

    def __getattr__(self, verb: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            self._between()
            return getattr(self._storage, verb)(*args, **named)

        return call


class World:
    """A storage, hosts, and what backups there are."""

    def __init__(self, top: Path, hosts: int = 2) -> None:
        self.top = top
        self.storage = MemoryStorage()
        self.clock = Clock()
        self.hosts = [Host(self, number) for number in range(hosts)]
        self.backups: dict[str, Trees] = {}
        """What each backup must give back."""

    def believes(self, signature: Signature | None, statement: bytes) -> bool:
        return signature is not None and any(
            signature.key == host.signing.public and verify(host.signing.public, signature.value, statement)
            for host in self.hosts
        )

    @contextmanager
    def backing_up(
        self, host: Host, trees: Trees, parent: BackupMetadata | None = None
    ) -> Iterator[Iterator[None]]:
        """A run that goes on by a file each time it is asked to, and ends with the context."""
        with host.repository().begin(plan_of(trees, parent=parent)) as run:
            steps = self._steps(run, trees)
            yield steps
            for _ in steps:
                pass
            host.last = run.commit(warnings=0, duration_seconds=0)
        self.backups[host.last.backup_id] = trees

    def back_up(self, host: Host, trees: Trees, parent: BackupMetadata | None = None) -> BackupMetadata:
        with self.backing_up(host, trees, parent):
            pass
        self.clock.forward(1)
        assert host.last is not None
        return host.last

    def expire(self, backup_id: str) -> None:
        host = self.hosts[0]
        with host.repository().expiring():
            host.repository().delete(host.repository().find(backup_id))
        del self.backups[backup_id]

    def assert_good(self, host: Host | None = None, *, deep: bool = False) -> None:
        """Every backup gives back what it must, and passes its checks."""
        repository = (host or self.hosts[0]).repository()
        good = {known.backup_id: known for known in repository.backups() if known.is_good}
        assert good.keys() == self.backups.keys()
        for backup_id, trees in self.backups.items():
            assert_holds(repository, good[backup_id], trees)
            repository.verify(good[backup_id], deep=deep, progress=ignore_progress)

    @contextmanager
    def kept(self) -> Iterator[Callable[[], None]]:
        """Gives what puts everything back to as it is now."""
        medium, now, backups = self.storage._medium, self.clock.now, dict(self.backups)
        objects, last = dict(medium.objects), [host.last for host in self.hosts]
        with scratch() as copy:
            shutil.copytree(self.top, copy / "top")

            def put_back() -> None:
                shutil.rmtree(self.top)
                shutil.copytree(copy / "top", self.top)
                self.storage = MemoryStorage()
                for name, content in objects.items():
                    self.storage.put(name, content)
                self.clock.now, self.backups = now, dict(backups)
                for host, backup in zip(self.hosts, last, strict=True):
                    host.last = backup

            yield put_back

    def names(self, prefix: str) -> set[str]:
        return {name for name in self.storage._medium.objects if name.startswith(prefix)}

    def stored_bytes(self) -> int:
        return sum(len(self.storage._medium.objects[name]) for name in self.names("packs/"))

    @staticmethod
    def _steps(run: Any, trees: Trees) -> Iterator[None]:
        nodes = trees["models", "main"]
        run.begin_source("models", "main")
        for path, node in sorted(nodes.items()):
            known = run.known(path)
            if known is not None and is_unchanged(known.entry, node.entry):
                run.keep(known)
            else:
                run.add(node.entry, content_of(node), known)
            yield
        run.end_source(record(("models", "main"), nodes))


def tensors(family: int, version: int) -> bytes:
    """A model of a family, whose versions are differences from each other; each with a header of its own."""
    draw = np.random.default_rng(family)
    base = {f"{family}.{n}": draw.normal(0, 0.02, (64, 128)).astype(np.float32) for n in range(3)}
    nudge = np.random.default_rng(1000 * family + version)
    # Large enough to be worth a difference.
    tuned = {
        name: tensor + (version > 0) * nudge.normal(0, 1e-6, tensor.shape).astype(np.float32)
        for name, tensor in base.items()
    }
    return save(tuned, {"version": str(version)})


def some_trees(draw: random.Random) -> Trees:
    """A few files, or many, out of a small world, so that backups share much."""
    files = [file(f"files/models/a{seed:02}", noise(2_000 + 1_000 * seed, seed)) for seed in range(24)]
    versions = [
        file(f"files/models/t{family}v{version}.safetensors", tensors(family, version))
        for family in range(3)
        for version in range(3)
    ]
    count = draw.choice([1, 2, 4, 16])
    return models(*draw.sample(files, count), *draw.sample(versions, draw.choice([0, 1, 2, 6])))
