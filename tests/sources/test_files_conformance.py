from __future__ import annotations

import os
import shutil
from pathlib import Path

from conformance.source import SECRET, SourceConformance
from holdfast.clock import Clock
from holdfast.sources._staging import FilesTarget
from holdfast.sources._swap import RenameSwap
from holdfast.sources.files import FilesSource
from sources.disk import look
from sources.files_source import files_source


class TestFiles(SourceConformance):
    swaps = (RenameSwap,)

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
