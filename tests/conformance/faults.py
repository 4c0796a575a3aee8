"""What happens when something goes wrong: part of what every `Repository` promises."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forks
from conformance.ground import Ground, ignore_progress
from conformance.trees import (
    Content,
    Trees,
    assert_holds,
    changing,
    content_of,
    directory,
    file,
    models,
    noise,
    pieces,
    plan_of,
    record,
    store,
    store_source,
    symlink,
    tree,
)
from holdfast.errors import (
    CorruptBackup,
    HoldfastError,
    KeyWrong,
    ParentMissing,
    RepositoryError,
    SizeLimitExceeded,
    SourceChanged,
    SourceUnreadable,
)
from holdfast.model import BackupMetadata
from holdfast.repository.base import Run, RunPlan

REFUSALS = (CorruptBackup, KeyWrong, ParentMissing)
"""What damage may be told as. ParentMissing: where the parent's id in the metadata is hit."""

BEFORE = models(
    file("files/models/a", b"before"),
    directory("files/models/d"),
    file("files/models/d/large", noise(400_000, 1)),
    symlink("files/models/link", "a"),
)
AFTER = models(
    file("files/models/a", b"after"),
    directory("files/models/d"),
    file("files/models/d/large", noise(200_000, 1) + b"changed" + noise(400_000, 1)[200_000:]),
    file("files/models/new", noise(300_000, 2)),
)


class InterruptedRunSuite:
    """A run that does not end well leaves nothing that could pass for a backup, and harms none."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError

    def run(self, ground: Ground, plan: RunPlan, body: Callable[[Run[Any]], None]) -> None:
        with ground.repository().begin(plan) as run:
            body(run)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("broken"),
            SourceUnreadable("permission denied"),
            KeyboardInterrupt(),
            GeneratorExit(),
        ],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("type_", ["full", "incremental"])
    def test_an_exception_in_the_body_leaves_only_the_record_of_a_failure(
        self, ground: Ground, type_: str, error: BaseException
    ) -> None:
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()
        plan = RunPlan("full", ("models",), None)
        if type_ == "incremental":
            plan = RunPlan("incremental", ("models",), full)

        def break_off(run: Run[Any]) -> None:
            store_source(run, ("models", "main"), AFTER["models", "main"])
            raise error

        with pytest.raises(type(error)) as raised:
            self.run(ground, plan, break_off)
        assert raised.value is error
        self.assert_only_a_failure_is_left(ground, full)

    def test_leaving_the_run_without_commit_is_an_error_and_leaves_nothing(self, ground: Ground) -> None:
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()
        with pytest.raises(RepositoryError, match="not committed"):
            self.run(
                ground,
                RunPlan("full", ("models",), None),
                lambda run: store_source(run, ("models", "main"), AFTER["models", "main"]),
            )
        self.assert_only_a_failure_is_left(ground, full)

    def test_an_exception_after_commit_leaves_the_backup(self, ground: Ground) -> None:
        def commit_and_break_off(run: Run[Any]) -> None:
            store_source(run, ("models", "main"), AFTER["models", "main"])
            run.commit(warnings=0, duration_seconds=0)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(ground, RunPlan("full", ("models",), None), commit_and_break_off)
        [committed] = ground.repository().backups()
        assert committed.is_good
        assert_holds(ground.repository(), committed, AFTER)
        assert ground.strays() == []

    @pytest.mark.parametrize("limit", [0, 1000, 200_000, 690_000])
    def test_a_run_stops_before_it_grows_over_its_limit(self, ground: Ground, limit: int) -> None:
        if not ground.is_chained:
            limit //= 4  # what is stored already is not stored again
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()
        with pytest.raises(SizeLimitExceeded):
            store(ground.repository(), AFTER, max_bytes=limit)
        self.assert_only_a_failure_is_left(ground, full)

    def test_a_run_within_its_limit_is_not_stopped(self, ground: Ground) -> None:
        size = store(ground.repository(), BEFORE).size_bytes
        ground.clock.forward()
        metadata = store(ground.repository(), BEFORE, max_bytes=size + 1000)
        assert metadata.size_bytes <= size + 1000

    def test_content_that_cannot_be_read_to_its_end_ends_the_run(self, ground: Ground) -> None:
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()

        def stream() -> Any:
            yield from pieces(noise(500_000, 1))
            raise OSError(5, "Input/output error")

        def add(run: Run[Any]) -> None:
            run.begin_source("models", "main")
            entry = file("files/models", noise(900_000, 1)).entry
            run.add(entry, Content(900_000, None, stream()), None)

        with pytest.raises((OSError, HoldfastError), match="Input/output"):
            self.run(ground, RunPlan("full", ("models",), None), add)
        self.assert_only_a_failure_is_left(ground, full)

    @pytest.mark.parametrize("read", [0, 300_000, 900_000])
    @pytest.mark.parametrize("then", ["small", "large"])
    @pytest.mark.parametrize("sized", [True, False], ids=["file", "dump"])
    @pytest.mark.parametrize("incremental", [False, True], ids=["full", "incremental"])
    def test_what_changed_while_it_was_read_can_be_added_again(
        self, ground: Ground, read: int, then: str, sized: bool, incremental: bool
    ) -> None:
        old = noise(900_000, 1)
        new = b"short now" if then == "small" else noise(450_000, 1) + noise(200_000, 3)
        path = "files/models/m"
        parent = store(ground.repository(), models(file(path, old))) if incremental else None
        ground.clock.forward()
        first = changing((noise(450_000, 2) + old)[:read], 900_000 if sized else None)
        trees = models(file(path, new, sized=sized), file("files/models/z", b"what follows"))
        nodes = trees["models", "main"]
        with ground.repository().begin(plan_of(trees, parent=parent)) as run:
            run.begin_source("models", "main")
            for node_path, node in nodes.items():
                known = run.known(node_path)
                if node_path == path:
                    with pytest.raises(SourceChanged):
                        run.add(node.entry._replace(size=900_000 if sized else 0), first, known)
                run.add(node.entry, content_of(node), known)
            run.end_source(record(("models", "main"), nodes))
            metadata = run.commit(warnings=0, duration_seconds=0)
        assert_holds(ground.repository(), metadata, trees)
        assert metadata.entries == len(nodes)
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)
        self.assert_plain_tools_see(ground, metadata, trees)

    def assert_plain_tools_see(self, ground: Ground, metadata: BackupMetadata, trees: Trees) -> None:
        """Where the format can be read without Holdfast, a subclass reads it so."""

    def test_content_longer_than_was_declared_is_refused_and_can_be_added_again(self, ground: Ground) -> None:
        node = file("files/models/m", noise(600_000, 1))
        with ground.repository().begin(RunPlan("full", ("models",), None)) as run:
            run.begin_source("models", "main")
            run.add(directory("files/models").entry, None, None)
            with pytest.raises(SourceChanged):
                run.add(node.entry, Content(600_000, None, pieces(noise(700_000, 1))), None)
            run.add(node.entry, content_of(node), None)
            run.end_source(record(("models", "main"), tree(node)))
            metadata = run.commit(warnings=0, duration_seconds=0)
        assert_holds(ground.repository(), metadata, models(node))
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)

    def assert_only_a_failure_is_left(self, ground: Ground, survivor: BackupMetadata) -> None:
        failed, *others = ground.repository().backups()
        assert failed.status == "failed"
        assert failed.error_message
        assert others == [survivor]
        assert ground.strays() == []
        assert_holds(ground.repository(), survivor, BEFORE)
        # Nor is anything in the way of the next run.
        assert_holds(ground.repository(), store(ground.repository(), AFTER, parent=survivor), AFTER)


class KilledRunSuite:
    """After `kill -9` at any point, the next run finds every backup that was made, and clears away the rest."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError

    @pytest.mark.parametrize("share", [0.4, pytest.param(1, marks=pytest.mark.torture)])
    @pytest.mark.parametrize("type_", ["full", "incremental"])
    def test_the_run_after_a_killed_one_clears_it_away(
        self, ground: Ground, tmp_path: Path, type_: str, share: float
    ) -> None:
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()
        parent = full if type_ == "incremental" else None
        place, pristine = ground.directory.parent, tmp_path / "pristine"
        shutil.copytree(place, pristine)

        def back_up() -> None:
            store(ground.repository(), AFTER, parent=parent)

        total = forks.count_calls(back_up)
        assert total > 20
        for point in random.Random(type_).sample(range(1, total + 1), round(total * share)):
            for path in place.iterdir():
                shutil.rmtree(path)
            shutil.copytree(pristine, place, dirs_exist_ok=True)
            assert not forks.run_killed(back_up, point)
            found = ground.repository().backups()
            good = [metadata for metadata in found if metadata.is_good]
            assert good[-1] == full
            for metadata in good[:-1]:  # killed after the commit: then it is whole
                ground.repository().verify(metadata, deep=True, progress=ignore_progress)
                assert_holds(ground.repository(), metadata, AFTER)
            now = store(ground.repository(), AFTER, parent=parent)
            left = ground.repository().backups()
            assert {metadata.status for metadata in left} <= {"success", "failed"}
            assert [metadata for metadata in left if metadata.is_good] == [now, *good]
            assert len(left) - len(found) in (0, 1)
            assert ground.strays() == [], f"killed at {point} of {total}"
            assert_holds(ground.repository(), now, AFTER)
            assert_holds(ground.repository(), full, BEFORE)


class DamageSuite:
    """Whatever happens to the stored bytes, nothing wrong ever comes out of them."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError

    @pytest.fixture
    def chain(self, ground: Ground) -> list[BackupMetadata]:
        """A full backup and an incremental on it."""
        full = store(ground.repository(), BEFORE)
        ground.clock.forward()
        return [full, store(ground.repository(), AFTER, parent=full)]

    @pytest.mark.parametrize("flips", [50, pytest.param(3000, marks=pytest.mark.torture)])
    @pytest.mark.parametrize("level", [0, 1], ids=["full", "incremental"])
    def test_a_flipped_byte_is_found_wherever_it_is(
        self, ground: Ground, chain: list[BackupMetadata], level: int, flips: int
    ) -> None:
        chance = random.Random(level)
        *data, metadata = ground.files_of(chain[level])
        for path in [*(chance.choice(data) for _ in range(flips)), *[metadata] * flips]:
            whole = path.read_bytes()
            # Half of them where headers, manifests and trailers are.
            near_an_end = chance.random() < 0.5
            at = chance.randrange(len(whole))
            if near_an_end:
                at = chance.choice([at % 600, -1 - at % 3000]) % len(whole)
            flipped = whole[at] ^ chance.choice([1 << bit for bit in range(8)])
            path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
            try:
                self.assert_nothing_wrong_comes_out(
                    ground, chain, f"{path.name} at {at}", found=path != metadata
                )
            finally:
                path.write_bytes(whole)
        self.assert_whole(ground, chain)

    @pytest.mark.parametrize("cuts", [20, pytest.param(1000, marks=pytest.mark.torture)])
    @pytest.mark.parametrize("level", [0, 1], ids=["full", "incremental"])
    def test_truncation_is_found_at_any_length(
        self, ground: Ground, chain: list[BackupMetadata], level: int, cuts: int
    ) -> None:
        chance = random.Random(level)
        for path in ground.files_of(chain[level]):
            whole = path.read_bytes()
            lengths = {0, 1, 2, 17, 18, len(whole) - 1, len(whole) - 2}
            lengths |= {chance.randrange(len(whole)) for _ in range(cuts)}
            lengths |= {len(whole) - 1 - chance.randrange(min(2000, len(whole))) for _ in range(cuts)}
            for length in sorted(lengths):
                path.write_bytes(whole[:length])
                try:
                    # The last byte of a metadata file ends its line, and says nothing.
                    found = length < len(whole.rstrip())
                    self.assert_nothing_wrong_comes_out(
                        ground, chain, f"{path.name} cut to {length}", found=found
                    )
                finally:
                    path.write_bytes(whole)
        self.assert_whole(ground, chain)

    def test_a_missing_file_is_found(self, ground: Ground, chain: list[BackupMetadata]) -> None:
        for metadata, trees in zip(chain, (BEFORE, AFTER), strict=True):
            resting, held = (chain[-1], AFTER) if ground.is_chained else (metadata, trees)
            for path in ground.files_of(metadata)[:-1]:
                whole = path.read_bytes()
                path.unlink()
                with pytest.raises(CorruptBackup):
                    ground.repository().verify(metadata, deep=False, progress=ignore_progress)
                with pytest.raises(CorruptBackup):
                    assert_holds(ground.repository(), resting, held)
                path.write_bytes(whole)

    def assert_nothing_wrong_comes_out(
        self, ground: Ground, chain: list[BackupMetadata], what: str, *, found: bool
    ) -> None:
        """Verifying says what is wrong, where there is anything to say; reading does, or gives what was stored."""
        backups = {metadata.backup_id: metadata for metadata in ground.repository().backups()}
        assert set(backups) == {metadata.backup_id for metadata in chain}, what
        refused = 0
        for metadata, trees in zip(chain, (BEFORE, AFTER), strict=True):
            for deep in (False, True):
                refused += self.is_refused(ground, metadata, what, deep=deep)
            try:
                again = ground.repository().find(metadata.backup_id)
                assert_holds(ground.repository(), again, trees)
            except REFUSALS:
                continue
            except AssertionError as error:
                raise AssertionError(f"{what}: something else came out") from error
        assert refused or not found, f"{what}: nobody noticed"

    def is_refused(self, ground: Ground, metadata: BackupMetadata, what: str, *, deep: bool) -> bool:
        repository = ground.repository()
        try:
            again = repository.find(metadata.backup_id)
            for level in repository.chain(again):
                repository.verify(level, deep=deep, progress=ignore_progress)
        except REFUSALS:
            return True
        if deep:
            assert vital(again) == vital(metadata), f"{what}: the metadata lies, and nobody noticed"
        return False

    def assert_whole(self, ground: Ground, chain: list[BackupMetadata]) -> None:
        assert ground.repository().backups() == chain[::-1]
        for metadata in chain:
            assert not self.is_refused(ground, metadata, "whole again", deep=True)


def vital(metadata: BackupMetadata) -> tuple[object, ...]:
    """What is said about a backup that is also written inside it, where it is signed."""
    return (
        metadata.backup_id,
        metadata.type,
        metadata.timestamp,
        metadata.components,
        metadata.parent,
        metadata.entries,
        metadata.source_bytes,
        metadata.host,
        metadata.tool,
        metadata.tags,
    )
