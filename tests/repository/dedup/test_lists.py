"""The list of packs that goes from backup to backup: it must not grow for ever, nor hold what no backup may need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.trees import assert_holds, file, models, noise, store
from forks import scratch
from holdfast.errors import RepositoryError
from holdfast.model import BackupMetadata
from holdfast.repository.dedup import _chunk_store, _relocate
from repository.dedup.grounds import DedupGround


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


STAYS = [file("files/models/large", noise(700_000, 1)), file("files/models/small", noise(900, 2))]


def make(ground: DedupGround, number: int) -> BackupMetadata:
    trees = models(*STAYS, file("files/models/z", noise(30_000, 100 + number)))
    metadata = store(ground.repository(), trees)
    assert_holds(ground.repository(), metadata, trees)
    ground.clock.forward()
    return metadata


def listed(ground: DedupGround, metadata: BackupMetadata) -> tuple[int, int]:
    """How many packs its manifest lists, and how many of them it needs."""
    with ground.repository().open(metadata) as stored:
        packs = stored.manifest.packs
    return len(packs), sum(bool(pack.hash) for pack in packs)


def test_packs_that_are_not_needed_leave_the_list_in_the_end(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relocate, "_WORN", 5)
    for number in range(20):
        metadata = make(ground, number)
        total, needed = listed(ground, metadata)
        assert needed == min(2, number + 1)
        assert total <= 10
        if number:
            assert metadata.size_bytes < 40_000, "what stays is not stored again"


def test_a_backup_that_could_not_be_opened_for_its_packs_is_not_made(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(ground, 0)
    monkeypatch.setattr(_chunk_store, "PACKS_LIMIT", 1)
    with pytest.raises(RepositoryError, match="would need 2 packs"):
        make(ground, 1)
    assert [known.backup_id for known in ground.repository().backups() if known.is_good] == [first.backup_id]
