from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from conformance.source import SECRET, SourceConformance, long_after
from holdfast.clock import Clock
from holdfast.errors import SourceChanged, SourceMissing
from holdfast.events import ignore
from holdfast.sources.files import FilesSource
from holdfast.sources.files._staging import FilesTarget
from holdfast.sources.files._swap import RenameSwap
from holdfast.transaction import Kinds
from sources.disk import look
from sources.files_source import files_source


class TestFiles(SourceConformance):
    def kinds(self, root: Path) -> Kinds:
        return {RenameSwap.kind: RenameSwap}

    def make(self, root: Path) -> None:
        models = root / "models"
        (models / "inner" / "empty").mkdir(parents=True)
        (models / "a").write_text(SECRET)
        (models / "inner" / os.fsdecode(b"caf\xe9")).write_bytes(b"")
        (models / "inner" / "large").write_bytes(bytes(300_000) + b"x")
        os.link(models / "a", models / "inner" / "hard")
        (models / "link").symlink_to("inner")

    def change(self, root: Path) -> None:
        with (root / "models" / "inner" / "large").open("r+b") as file:
            file.write(b"y")

    def remove(self, root: Path) -> None:
        shutil.rmtree(root / "models")

    def source(self, root: Path, clock: Clock) -> FilesSource:
        return files_source(root, clock=clock)

    def target(self, root: Path) -> FilesTarget:
        return FilesTarget({"files/models": root / "models"})

    def state(self, root: Path) -> object:
        return look(root) or None

    def test_data_that_goes_after_the_scan_is_an_error(self, root: Path) -> None:
        """A file that goes is missing; one whose directory goes was moved, for all that the source can tell."""
        items = list(self.source(root, long_after).scan(ignore))
        first, *others = [item for item in items if item.entry.kind == "file"]
        (root / first.entry.path.removeprefix("files/")).unlink()
        with pytest.raises(SourceMissing):
            first.open()
        self.remove(root)
        for item in others:
            with pytest.raises(SourceChanged):
                item.open()
