"""The programs that dump: MariaDB's and MySQL's, which fit their own servers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import DatabaseError
from holdfast.sources._program import Program, find_program
from holdfast.sources.mysql._session import Session, major_of
from holdfast.sources.mysql._survey import Survey

_MARIADB_VERSION = re.compile(r"(?:Distrib|from) (\d+\.\d+\.\d+)")
_MYSQL_VERSION = re.compile(r"Ver (\d+\.\d+\.\d+)")
_HISTORY_SINCE = (10, 11)

_OPTIONS = (
    "--single-transaction",  # one snapshot of all InnoDB tables, without a lock
    "--quick",  # row by row: a table need not fit into memory
    "--routines",
    "--triggers",
    "--events",
    "--hex-blob",  # bytes that no character set can spoil
    "--default-character-set=utf8mb4",
    "--no-tablespaces",  # else the right PROCESS is needed
    "--tz-utc",
    "--skip-dump-date",  # the same rows give the same bytes
    # A MiB of rows a statement: few enough heads for an incremental that a row put in between shifts, and loaded
    # many times as fast as row by row. Every server takes it by default.
    "--extended-insert",
    "--net-buffer-length=1046528",
    "--max-allowed-packet=1G",
)
"""https://mariadb.com/kb/en/mariadb-dump/ and https://dev.mysql.com/doc/refman/8.4/en/mysqldump.html"""


@dataclass(frozen=True, slots=True)
class DumpTool:
    """An installed program that dumps."""

    path: str
    version: str
    is_mariadb: bool

    @property
    def keeps_history(self) -> bool:
        """Whether it dumps the past rows of tables WITH SYSTEM VERSIONING, too."""
        numbers = tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())
        return self.is_mariadb and numbers >= _HISTORY_SINCE

    def options(self, survey: Survey) -> list[str]:
        """How it is called for a schema."""
        options = list(_OPTIONS)
        if not self.is_mariadb:
            options += ["--set-gtid-purged=OFF"]
            if major_of(self.version) >= 8:
                options += ["--column-statistics=0"]
        elif survey.flavour == "MariaDB":
            if survey.tells_position:
                options += ["--master-data=2", "--gtid"]
            if survey.has_history and self.keeps_history:
                options += ["--dump-history"]
        return options


def find_dump_tool(session: Session, doing: str) -> DumpTool:
    """The program for a server. Raises DatabaseError where none is installed, or one that is known to fail."""
    if session.is_mariadb:
        path = find_program("mariadb-dump", "mysqldump", package="mariadb-client")
    else:
        path = find_program("mysqldump", "mariadb-dump", package="mysql-client")
    told = Program([path, "--version"], doing=doing).run()
    is_mariadb = "mariadb" in told.lower()
    found = (_MARIADB_VERSION if is_mariadb else _MYSQL_VERSION).search(told)
    version = found[1] if found else "of an unknown version"
    if session.is_mariadb and not is_mariadb:
        raise DatabaseError(
            f"{doing}: {path} is MySQL's ({version}), and the server is MariaDB {session.version}",
            hint="Install mariadb-client: MySQL's own program knows no sequences, and fails on MariaDB.",
        )
    if not session.is_mariadb and not is_mariadb and major_of(version) < session.major:
        raise DatabaseError(
            f"{doing}: {path} is {version}, and the server is MySQL {session.version}",
            hint=f"Install the client programs of MySQL {session.major}.",
        )
    return DumpTool(path, version, is_mariadb)
