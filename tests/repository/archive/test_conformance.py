from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.catalog import CatalogSuite
from conformance.faults import DamageSuite, InterruptedRunSuite, KilledRunSuite
from conformance.ground import Ground
from conformance.repository import RepositorySuite
from conformance.trees import Trees
from forks import scratch
from holdfast.model import BackupMetadata
from repository.archive.archives import ArchiveGround


@pytest.fixture
def top() -> Iterator[Path]:
    """In memory, where that is possible: what is proved here does not depend on a disk."""
    with scratch() as directory:
        yield directory


class Plain:
    @pytest.fixture
    def ground(self, top: Path) -> ArchiveGround:
        return ArchiveGround(top)


class Encrypted:
    @pytest.fixture
    def ground(self, top: Path) -> ArchiveGround:
        return ArchiveGround(top, encrypt=True)


class TestStoring(Plain, RepositorySuite):
    pass


class TestStoringEncrypted(Encrypted, RepositorySuite):
    pass


class TestCatalog(Plain, CatalogSuite):
    pass


class TestInterruptedRun(Plain, InterruptedRunSuite):
    def assert_plain_tools_see(self, ground: Ground, metadata: BackupMetadata, trees: Trees) -> None:
        """`tar` takes the last member of a name; `cat` joins the pieces of a dump."""
        archive = str(ground.files_of(metadata)[0])
        with tempfile.TemporaryDirectory(dir=ground.directory.parent) as extracted:
            subprocess.run(["tar", "-xzf", archive, "-C", extracted], check=True)
            if metadata.parent is not None:
                return
            for path, node in trees["models", "main"].items():
                if node.content is None:
                    continue
                found = Path(extracted, path)
                pieces = [found] if node.sized else sorted(found.parent.glob(f"{found.name}.*"))
                assert b"".join(piece.read_bytes() for piece in pieces) == node.content


class TestKilledRun(Plain, KilledRunSuite):
    pass


class TestDamage(Plain, DamageSuite):
    pass


class TestDamageEncrypted(Encrypted, DamageSuite):
    pass
