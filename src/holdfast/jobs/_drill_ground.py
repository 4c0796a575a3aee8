"""Where a drill restores to: a private directory for files and SQLite databases, scratch databases on the servers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.config import DatabaseSpec
from holdfast.durable import temp_directory
from holdfast.errors import ConfigError
from holdfast.events import Emit, StageStarted, Warned
from holdfast.installation import Installation
from holdfast.jobs._drill_models import ModelCheck
from holdfast.jobs._reading import Reading, check_room
from holdfast.model import Entry, SourceRecord
from holdfast.repository.base import StoredBackup
from holdfast.sources._server import Rehearsable
from holdfast.sources.files._staging import make_empty_directory
from holdfast.sources.sqlite._rehearsal import check_copy
from holdfast.transaction import Transaction

_ROOM = (
    "A drill restores into TMPDIR, else /var/tmp, and into scratch databases. Free some space, or set TMPDIR."
)
_MAIN = "main"
_OF_A_RESTORE = ("open", "extract", "load", "check")
"""The stages that a restore has as well."""


@dataclass(slots=True)
class Checks:
    """What was found good so far."""

    entries: int = 0
    """Files, directories, links and dumps that were written, each with its digest."""
    models: int = 0
    """Model files whose header is that of a whole one."""
    databases: int = 0
    """Loaded, and sound."""
    tables: int = 0
    """That have the rows which were recorded."""
    command: bool = False
    """Whether the user's command ran, and was satisfied."""


class Ground:
    """One drill's scratch, which the transaction takes away."""

    def __init__(
        self,
        installation: Installation,
        records: Sequence[SourceRecord],
        transaction: Transaction,
        emit: Emit,
    ) -> None:
        self.checks = Checks()
        self.seconds: dict[str, float] = {}
        """That each stage took: ``open``, ``extract``, ``load``, ``check``, ``command``."""
        self.bytes = 0
        """Of content, restored."""
        self.whole = True
        """Whether everything that a restore does before its swap could be tried."""
        self._installation = installation
        self._records = records
        self._transaction = transaction
        self._emit = emit
        self._copied = 0.0
        self._urls: dict[str, str] = {}
        self.directory = Path()
        """What stands for the service root."""

    def fill(self, stored: StoredBackup) -> None:
        """Restores everything. Raises HoldfastError of every kind."""
        servers = {
            record.key: self._installation.target(record, create_database=True)
            for record in self._records
            if _is_on_server(record)
        }
        needs = {temp_directory(): sum(r.bytes for r in self._records if not _is_on_server(r))}
        for record in self._records:
            if record.key in servers:
                for place, size in servers[record.key].needs(record.bytes).items():
                    needs[place] = needs.get(place, 0) + size
        check_room(needs, "the drill", _ROOM)
        self.directory = self._transaction.place(temp_directory()) / "restored"
        make_empty_directory(self.directory)
        reading = Reading(stored, self._records, self._emit)
        for record in self._records:
            subject = f"{record.component} {record.name}"
            if record.key in servers:
                self._emit(StageStarted("load", subject, record.bytes))
                with self._timed("load"):
                    swaps = servers[record.key].stage(
                        reading.entries_of(record), reading.read, self._transaction, self._emit
                    )
                [swap] = swaps
                if isinstance(swap, Rehearsable):
                    spec = self._specs()[record.name]
                    assert spec.url is not None
                    url = swap.scratch_url().set(drivername=spec.url.drivername)
                    self._urls[record.name] = url.render_as_string(hide_password=False)
                    self.checks.databases += 1
                    self.checks.tables += _count_tables(record.moment.get("rows"))
                else:
                    self.whole = False
                    self._emit(
                        Warned(
                            f"{subject} was read and not loaded: its role may not create a scratch database, and a "
                            "restore would load it into the live one"
                        )
                    )
            else:
                self._emit(StageStarted("extract", subject, record.bytes))
                self._extract(record, reading)
            reading.flush()
            self.checks.entries, self.bytes = reading.entries, reading.bytes

    def check(self) -> None:
        """Checks the SQLite databases. Raises CorruptBackup."""
        for record in self._records:
            if record.kind != "sqlite":
                continue
            self._emit(StageStarted("check", f"{record.component} {record.name}"))
            with self._timed("check"):
                self.checks.tables += check_copy(self._sqlite_copy(record), record.name, record.moment)
            self.checks.databases += 1

    @property
    def restore_seconds(self) -> float | None:
        """An estimate for a restore of the same; None where not everything could be tried.

        It opens, reads, writes, loads and checks as this did. The swap is renames, but for SQLite: the live database
        is copied aside, and the restored one copied over it, each about as long as writing it took here.
        """
        if not self.whole:
            return None
        return sum(self.seconds.get(stage, 0.0) for stage in _OF_A_RESTORE) + 2 * self._copied

    def variables(self) -> dict[str, str]:
        """For the user's command: ``DATABASE_URL_<NAME>`` for every database that is configured or restored, and the
        variables that the service itself reads. Empty where there is no scratch: never the live database."""
        names = {*self._specs(), *(r.name for r in self._records if r.component == "database")}
        main = _MAIN if _MAIN in names or len(names) != 1 else next(iter(names))
        found = {"DATABASE_URL": self._urls.get(main, "")}
        for name in names:
            found[f"DATABASE_URL_{name.upper().replace('-', '_')}"] = self._urls.get(name, "")
            table = self._installation.settings.database_tables.get(name)
            if table is not None and table.env is not None:
                found[table.env] = self._urls.get(name, "")
        return found

    def facts(self) -> dict[str, Any]:
        """For the history."""
        return {
            "bytes": self.bytes,
            "stages": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "checks": asdict(self.checks),
        }

    @contextmanager
    def timed_command(self) -> Iterator[None]:
        """Around the user's command."""
        with self._timed("command"):
            yield
        self.checks.command = True

    def _extract(self, record: SourceRecord, reading: Reading) -> None:
        models = ModelCheck(self._emit)

        def read(entry: Entry) -> Iterator[bytes | memoryview]:
            pieces = reading.read(entry)
            return models.watch(entry, pieces) if record.component == "models" else pieces

        target = self._installation.elsewhere(record, self.directory, self._records)
        before = self.seconds.get("extract", 0.0)
        with self._timed("extract"):
            target.write(reading.entries_of(record), read, self._emit, within=self.directory)
        self.checks.models += models.checked
        if record.kind == "sqlite":
            self._copied += self.seconds["extract"] - before
            path = self._sqlite_copy(record)
            url = self._specs()[record.name].url if record.name in self._specs() else None
            driver = "sqlite" if url is None else url.drivername
            self._urls[record.name] = f"{driver if driver.startswith('sqlite') else 'sqlite'}:///{path}"

    def _sqlite_copy(self, record: SourceRecord) -> Path:
        target = self._installation.elsewhere(record, self.directory, self._records)
        return target.place_of(f"database/{record.name}.db")

    def _specs(self) -> dict[str, DatabaseSpec]:
        try:
            return {spec.name: spec for spec in self._installation.settings.databases}
        except ConfigError:  # A backup may be tried on a host where its databases are not configured.
            return {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


def _is_on_server(record: SourceRecord) -> bool:
    return record.kind not in ("files", "sqlite")


def _count_tables(rows: Any) -> int:
    """Tables of a server's record, in which they may stand by schema. It was checked when they were compared."""
    if not isinstance(rows, dict):
        return 0
    return sum(len(inner) if isinstance(inner, dict) else 1 for inner in rows.values())
