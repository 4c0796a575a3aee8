"""Backups that earlier versions made: each one restores and verifies, for ever.

`golden/make.py` made them. Beside each lies what it is to become.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from golden.make import listing
from holdfast.events import ignore
from holdfast.installation import Installation
from holdfast.jobs.restore import restore
from holdfast.jobs.verify import verify

GOLDEN = Path(__file__).parent / "golden"
TREES = sorted(GOLDEN.glob("*/*.tree.json"))
KEYS = json.loads((GOLDEN / "keys.json").read_text())

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="names, attributes and holes are as Linux has them"
)


def golden(tree: Path, top: Path) -> Installation:
    """A new machine, with a copy of the backups and the key, that believes whoever made them."""
    root = top / "service"
    root.mkdir()
    shutil.copytree(tree.parent, root / "backups")
    environ = {"XDG_STATE_HOME": str(top / "state"), "HOME": str(top)}
    case = tree.parent.name
    if case in ("encrypted", "passphrase"):
        environ["ENCRYPTION_KEY"] = KEYS["identity" if case == "encrypted" else "passphrase"]
    installation = Installation.load(root, environ)
    installation.state.trust(KEYS["signed_by"])
    return installation


def expected(tree: Path, found: dict[str, Any], top: Path) -> dict[str, Any]:
    """What a backup is to become, but for what the file system at hand cannot hold."""
    wanted: dict[str, Any] = json.loads(tree.read_text())
    probe = top / "probe"
    probe.write_bytes(b"")
    try:
        os.setxattr(probe, "user.probe", b"1")
    except OSError:
        for entry in wanted.values():
            entry.pop("xattrs", None)
    with probe.open("wb") as file:
        file.truncate(1 << 20)
    if probe.stat().st_blocks:
        for entry in (*wanted.values(), *found.values()):
            entry.pop("sparse", None)
    return wanted


def test_there_are_golden_backups_of_every_kind() -> None:
    assert {tree.parent.name for tree in TREES} == {"plain", "odd", "chain", "encrypted", "passphrase"}
    size = sum(
        path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    )
    assert size < 300_000


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.parent.name} {tree.name.partition('.')[0]}")
def test_a_golden_backup_verifies_and_restores(tree: Path, tmp_path: Path) -> None:
    installation = golden(tree, tmp_path)
    backup_id = tree.name.partition(".")[0]
    verify(installation, backup_id, ignore, deep=True)
    done = restore(installation, backup_id, ignore, target=tmp_path / "restored")
    assert done.warnings == ()
    found = listing(tmp_path / "restored")
    wanted = expected(tree, found, tmp_path)
    assert found == wanted


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.parent.name} {tree.name.partition('.')[0]}")
def test_a_golden_backup_goes_back_to_where_it_was(tree: Path, tmp_path: Path) -> None:
    installation = golden(tree, tmp_path)
    restore(installation, tree.name.partition(".")[0], ignore, confirm=lambda question: True, create_db=True)
    found = {
        name: entry
        for name, entry in listing(installation.settings.root).items()
        if not name.startswith(".holdfast-")
    }
    assert found == expected(tree, found, tmp_path)
