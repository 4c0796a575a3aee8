"""How long a person waits for a program that has little to do."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from bench.measure import Contender, in_turns
from bench.programs import Holdfast, Peers
from bench.report import Result, Table, limit_goal
from bench.workspace import Workspace

_BACKUPS = 1000
_TURNS = 5  # for each run asked for: these are short
_HELP_LIMIT, _LIST_LIMIT = 0.25, 0.6  # seconds


def start(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """``--help``, and ``list`` with 1,000 backups."""
    service = space.fresh("service")
    (service / "settings.yaml").write_text("log_level: INFO\n")
    holdfast = Holdfast(service, space.fresh("holdfast"))
    holdfast.backup()
    [original] = holdfast.backups.glob("*/*.metadata.json")
    metadata = json.loads(original.read_text())
    kind = metadata["backup_id"].partition("_")[0]
    for number in range(1, _BACKUPS):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        backup_id = f"{kind}_{moment:%Y%m%d_%H%M%S}"
        copy = metadata | {"backup_id": backup_id, "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}"}
        original.with_name(f"{backup_id}.metadata.json").write_text(json.dumps(copy, indent=2))

    rows = in_turns(
        runs * _TURNS,
        [
            Contender("holdfast --help", lambda: holdfast.run("--help")),
            Contender("holdfast list", lambda: holdfast.run("list")),
        ],
    )
    told = holdfast.output().count(kind + "_")
    goals = [
        limit_goal("holdfast --help", rows[0].wall, _HELP_LIMIT, "s"),
        limit_goal(f"holdfast list with {_BACKUPS:,} backups", rows[1].wall, _LIST_LIMIT, "s"),
    ]
    return Result("start", [Table("start", rows)], goals, [f"holdfast list tells of {told:,} backups"])
