"""A dump loaded into the live PostgreSQL database itself, by a role that may not create and rename databases.

Everything is one transaction of psql's: the tables are locked against writers, the live state is dumped to the
private place, what the role owns is dropped, the dump is loaded. Whoever reads sees the old state until it commits.
Whether it did shows by the number of the transaction, which is durable in the place before anything is replaced
(https://www.postgresql.org/docs/current/functions-info.html, txid_status). In the place::

    0.dump  staged      1.dump  what was live      1.xid   the transaction that replaced it
                                                   1.back  the one that put it back

The swap that takes this one back goes from ``1`` to ``2`` in the same manner.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

from holdfast.durable import replace_file, sync_directory
from holdfast.errors import DatabaseBusy, DatabaseError, NothingToUndo, RestoreError
from holdfast.sources._program import Program
from holdfast.sources._server import Address
from holdfast.sources.postgres._archive import contents, load_failed
from holdfast.sources.postgres._connection import (
    RESTORE,
    Client,
    Server,
    Session,
    end_run,
    milliseconds,
)
from holdfast.sources.postgres._dump import FORMAT
from holdfast.sources.postgres._moment import Rows
from holdfast.sources.postgres._statements import BEGIN, DROP_ALL, LOCK_ALL, check_statement, left_alone
from holdfast.transaction import is_place_name, remove_place, restoring

_PAUSE = 0.02
_XID_BYTES = 40
_TAIL_BYTES = 4096
_COMMIT = b"\nCOMMIT;"
_SHARED = re.compile(r"\d+; \d+ \d+ (?:(SCHEMA|EXTENSION) - |(?:COMMENT|ACL) - (SCHEMA|EXTENSION) )(.*) \S*")
"""Lines of a list about a schema or an extension: its kind in one of two groups, and its name."""


class InPlaceSwap:
    """A dump in a private place for what a live database holds. Implements `holdfast.transaction.Swap`.

    `step` is the number of the dump that is coming. Raises DatabaseBusy, DatabaseError, RestoreError, NoSpace;
    whatever was raised, `revert` puts right.
    """

    kind: ClassVar[str] = "postgresql"

    def __init__(
        self,
        address: Address,
        server: Callable[[], Server],
        place: Path,
        run: str,
        *,
        step: int = 0,
        rows: Rows | None = None,
    ) -> None:
        """`server` looks up the live database, with its password. `rows` are what must be there once it is applied,
        where that is known."""
        self._address = address
        self._server = server
        self._place = place
        self._run = run
        self._step = step
        self._rows = rows
        self._coming = place / f"{step}.dump"
        self._kept = place / f"{step + 1}.dump"
        self.note = ""
        """How it was done."""

    def to_journal(self) -> dict[str, Any]:
        return {
            "mode": "in place",
            "address": self._address.to_journal(),
            "run": self._run,
            "step": self._step,
            "place": str(self._place),
        }

    @classmethod
    def from_journal(
        cls, state: dict[str, Any], address: Address, server: Callable[[], Server], *, run: str, step: int
    ) -> InPlaceSwap:
        """The inverse of `to_journal`. Raises KeyError, TypeError, ValueError."""
        place = Path(state["place"])
        if not place.is_absolute() or not is_place_name(place.name) or f"-{run}-" not in place.name:
            raise ValueError(f"{place} is not a private place of run {run}")
        return cls(address, server, place, run, step=step)

    def apply(self) -> None:
        """See `Swap.apply`. What was live is whole and durable before anything of it is replaced."""
        server = self._server()
        with restoring(f"{RESTORE}: cannot write to {self._place}"):
            if not self._coming.exists():
                raise NothingToUndo(f"nothing is kept that could be put into {self._address}")
            for old in (self._xid("xid"), self._xid("back"), self._kept):
                old.unlink(missing_ok=True)
            sync_directory(self._place)
            self._load(server, self._coming, self._xid("xid"), keep=True)
        self.note = (
            f"{self._address} was restored in place, in one transaction, because its role may not create and rename "
            "databases; owner, rights and settings of the database itself were left as they are"
        )

    def revert(self) -> None:
        """See `Swap.revert`. What others wrote after `apply` goes with the restored state."""
        server = self._server()
        with server.session(RESTORE, run=self._run) as session:
            end_run(session, self._run, time.monotonic() + server.timeout)
            due = self._is_committed(session, "xid") and not self._is_committed(session, "back")
        if due:
            if not self._kept.exists():
                raise RestoreError(
                    f"{RESTORE}: {self._kept} is gone, which holds what {self._address} was before"
                )
            with restoring(f"{RESTORE}: cannot write to {self._place}"):
                self._load(server, self._kept, self._xid("back"), keep=False)

    def reversed(self) -> InPlaceSwap:
        return InPlaceSwap(self._address, self._server, self._place, self._run, step=self._step + 1)

    def settle(self) -> None:
        with restoring(f"{RESTORE}: cannot write to {self._place}"):
            self._coming.unlink(missing_ok=True)

    def discard(self) -> None:
        with restoring(f"{RESTORE}: cannot remove {self._place}"):
            remove_place(self._place)

    def _xid(self, suffix: str) -> Path:
        return self._kept.with_suffix(f".{suffix}")

    def _is_committed(self, session: Session, suffix: str) -> bool:
        try:
            with self._xid(suffix).open("rb") as file:
                xid = int(file.read(_XID_BYTES))
        except FileNotFoundError:
            return False
        except ValueError as error:
            raise RestoreError(f"{self._xid(suffix)} does not hold the number of a transaction") from error
        status = session.run("SELECT txid_status(%s::int8)", xid)[0][0]
        if status not in ("committed", "aborted"):
            raise RestoreError(
                f"{RESTORE}: the server does not know any more whether {self._address} was replaced ({status})",
                hint=f"What was there before is in {self._kept}: look at the database, or load that by pg_restore.",
            )
        return bool(status == "committed")

    def _load(self, server: Server, archive: Path, xid: Path, *, keep: bool) -> None:
        psql = Client.find("psql", RESTORE)
        pg_restore = Client.find("pg_restore", RESTORE)
        with server.session(RESTORE, run=self._run) as session:
            wanted = self._place / "wanted.list"
            _write_list(wanted, contents(pg_restore, archive), *left_alone(session))
            program = server.program(
                [psql.path, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"],
                RESTORE,
                session,
                run=self._run,
            )
            script = [
                pg_restore.path,
                "--single-transaction",
                f"--use-list={wanted}",
                "--file=-",
                str(archive),
            ]
            try:
                program.feed(
                    self._script(server, session, Program(script, RESTORE), xid, self._kept if keep else None)
                )
            except DatabaseError as error:
                if isinstance(error, DatabaseBusy):
                    raise
                raise load_failed(error) from error

    def _script(
        self, server: Server, session: Session, script: Program, xid: Path, keep: Path | None
    ) -> Iterator[bytes | memoryview]:
        """What psql runs. It never runs on by itself: its COMMIT comes from us, at the end of the script."""
        answer = self._place / "answer"
        answer.unlink(missing_ok=True)
        told = " \\g '" + str(answer).replace("\\", "\\\\").replace("'", "''") + "'\n"
        yield BEGIN.format(timeout=milliseconds(server.timeout)).encode()
        yield f"SELECT txid_current(){told}".encode()
        number = yield from _answered(answer)
        yield f"{LOCK_ALL} \\gexec\nSELECT 0{told}".encode()
        yield from _answered(answer)
        if keep is not None:
            _keep(server, session, keep)
        replace_file(xid, number.encode())
        yield f"{DROP_ALL} \\gexec\n".encode()
        check = b"" if self._rows is None or keep is None else check_statement(self._rows, session.major)
        # The script begins a transaction as well, of which psql makes nothing, and ends ours.
        with closing(script.output()) as pieces:
            yield from _before_commit(pieces, check)


def _before_commit(pieces: Iterator[bytes | memoryview], statement: bytes) -> Iterator[bytes | memoryview]:
    """A script, with a statement before its last one. After that come only comments."""
    tail = b""
    for piece in pieces:
        tail += piece
        yield tail[:-_TAIL_BYTES]
        tail = tail[-_TAIL_BYTES:]
    start, commit, end = tail.rpartition(_COMMIT)
    if not commit:
        raise DatabaseError(f"{RESTORE}: the script that pg_restore made does not end as it should")
    yield start
    yield statement + commit + end


def _answered(answer: Path) -> Generator[bytes, None, str]:
    """Waits until psql has written a line. What it is fed meanwhile is nothing, but tells when it is gone."""
    while True:
        with suppress(FileNotFoundError):
            text = answer.read_text("ascii")
            if text.endswith("\n"):
                answer.unlink()
                return text.strip()
        yield b"\n"
        time.sleep(_PAUSE)


def _keep(server: Server, session: Session, target: Path) -> None:
    """Dumps the live database. Writers are locked out, so it is what the transaction will replace."""
    client = Client.find("pg_dump", RESTORE)
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    program = server.program(
        [client.path, *FORMAT, f"--lock-wait-timeout={milliseconds(server.timeout)}"], RESTORE, session
    )
    with open(descriptor, "wb", buffering=0) as file:
        for piece in program.output():
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(descriptor)
    part.rename(target)
    sync_directory(target.parent)


def _write_list(path: Path, lines: Iterator[str], schemas: set[str], extensions: set[str]) -> None:
    """What of a dump is to be loaded: not the schemas and extensions that stay because they are another role's."""
    kept = {"SCHEMA": schemas, "EXTENSION": extensions}
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        for line in lines:
            found = _SHARED.fullmatch(line)
            if found is None or found[3] not in kept[found[1] or found[2]]:
                file.write(f"{line}\n")
