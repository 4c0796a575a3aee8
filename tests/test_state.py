"""What this machine remembers beside the backups."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.state import LocalState


def state(top: Path) -> LocalState:
    return LocalState.locate({"XDG_STATE_HOME": str(top)}, root=top / "service", backup_dir=top / "backups")


def test_the_history_is_private_and_grows(tmp_path: Path) -> None:
    for number in range(3):
        state(tmp_path).record({"verb": "backup", "number": number})
    assert [record["number"] for record in state(tmp_path).history()] == [0, 1, 2]
    assert state(tmp_path).history_file.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    local = state(tmp_path)
    local.record({"number": 1})
    os.truncate(local.history_file, local.history_file.stat().st_size - 4)
    local.record({"number": 2})
    local.record({"number": 3})
    assert [record["number"] for record in local.history()] == [2, 3]
