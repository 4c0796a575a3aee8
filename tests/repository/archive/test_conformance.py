from __future__ import annotations

from pathlib import Path

import pytest
from repository.archive.archives import ArchiveGround

from conformance.catalog import CatalogSuite
from conformance.faults import DamageSuite, InterruptedRunSuite, KilledRunSuite
from conformance.repository import RepositorySuite


class Plain:
    @pytest.fixture
    def ground(self, tmp_path: Path) -> ArchiveGround:
        return ArchiveGround(tmp_path)


class Encrypted:
    @pytest.fixture
    def ground(self, tmp_path: Path) -> ArchiveGround:
        return ArchiveGround(tmp_path, encrypt=True)


class TestStoring(Plain, RepositorySuite):
    pass


class TestStoringEncrypted(Encrypted, RepositorySuite):
    pass


class TestCatalog(Plain, CatalogSuite):
    pass


class TestInterruptedRun(Plain, InterruptedRunSuite):
    pass


class TestKilledRun(Plain, KilledRunSuite):
    pass


class TestDamage(Plain, DamageSuite):
    pass


class TestDamageEncrypted(Encrypted, DamageSuite):
    pass
