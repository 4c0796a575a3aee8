"""What the service holds, and ways to change it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from holdfast import BackupMetadata

BackUpAt = Callable[..., BackupMetadata]
"""See the fixture `back_up_at`."""

PREDICTIONS = 400
"""Rows of predictions in the service that tests begin with."""
DATABASE = Path("iit_ml_service.db")
MODEL = Path("models/classifier-v1.safetensors")
SETTINGS = Path("config/service.yaml")
ARCHIVE = Path("backups/full/full_20240101_020000.tar.gz")
"""The archive of the contract's samples."""


def predictions(database: Path = DATABASE) -> int:
    """Rows in the table of predictions, of a sound database."""
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT count(*) FROM predictions").fetchone()[0])


def predict(count: int) -> None:
    """Adds rows, as so many answers of the service would."""
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute(
            "INSERT INTO predictions (created_at, model_version, label, confidence, needs_review, features) "
            "SELECT created_at, model_version, label, confidence, needs_review, features FROM predictions LIMIT ?",
            (count,),
        )


def work_on() -> None:
    """Changes every component."""
    predict(10)
    MODEL.with_name("classifier-v2.safetensors").write_bytes(b"a second model")
    SETTINGS.write_text("review_threshold: 0.9\n")


def tree(*roots: str) -> dict[str, bytes]:
    """Every file below these, but for a database and its logs: their rows tell, not their bytes."""
    return {
        str(path): path.read_bytes()
        for root in roots
        for path in sorted(Path(root).rglob("*"))
        if path.is_file() and not path.name.startswith(DATABASE.name)
    }


def state() -> tuple[int, dict[str, bytes]]:
    """All that a backup of the service protects."""
    return predictions(), tree("models", "config")


def damage(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_slow(path: Path) -> None:
    """A file of some 60 MB, that takes seconds to compress, and a while to restore."""
    line = "".join(f'{{"id": {number}, "value": {number * 7919 % 10007}}}\n' for number in range(30_000))
    path.write_text(line * 60)
