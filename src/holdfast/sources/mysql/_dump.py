"""Dumps as ``mysqldump`` and ``mariadb-dump`` write them: their rows counted, and their statements told apart.

What is relied upon (mysqldump.c): a statement begins at a line's start and ends with its delimiter at a line's end;
rows stand in ``INSERT INTO `t` … VALUES`` statements, whose strings hold no line's end and escape by backslash;
the text of a program stands between ``DELIMITER ;;`` and ``DELIMITER ;``; the last line says ``-- Dump completed``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.errors import CorruptBackup, RestoreError

_HEADS = (b"-- MySQL dump", b"-- MariaDB dump", b"/*M!999999\\-", b"/*!999999\\-")
_SANDBOX = _HEADS[2:]
"""A line without a delimiter: a word to MariaDB's client."""
_COMPLETED = b"-- Dump completed"
_NAME = rb"`((?:[^`]|``){1,128})`"
_INSERT = re.compile(rb"INSERT INTO " + _NAME + rb"(?: \((?:[^`()]|`[^`]*+`)*+\))? VALUES")
_TABLE = re.compile(rb"CREATE (?:TABLE|SEQUENCE) (?:IF NOT EXISTS )?" + _NAME)
_BINLOG = re.compile(rb"-- CHANGE MASTER TO MASTER_LOG_FILE='([^'\\]+)', MASTER_LOG_POS=([0-9]{1,18});")
_GTID = re.compile(rb"-- SET GLOBAL gtid_slave_pos='([0-9,-]*)'")
_HEADER_LIMIT = 1 << 20
"""The longest list of columns, and then some."""
_TAIL = 256
_BALANCED = re.compile(
    rb"""(?:[^'"`\\]++|\\.|'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+"|`[^`]*+`)*+""", re.DOTALL
)
_AFTER_PROGRAM = (b"DELIMITER ;", b"/*!50003 SET ", b"/*!50003 CREATE", b"/*!50106 ", b"ALTER DATABASE ")


def unquoted(name: bytes) -> str:
    """A name, from between its backticks."""
    return name.replace(b"``", b"`").decode("utf-8", "surrogateescape")


class Tally:
    """Counts the rows of a dump as it goes by, in pieces cut anywhere. Its memory does not grow with the dump."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        """By table, sequences included."""
        self.binlog: tuple[str, int] | None = None
        """File and position that the dump says it is of."""
        self.odd: str | None = None
        """A line that ought to hold rows, and is not written as is known here."""
        self.gtid: str | None = None
        self._rest = b""
        self._tail = b""
        self._table: str | None = None
        """Whose rows come next."""
        self._in_string = False
        self._in_line = False
        """Of no interest: up to its end."""
        self._in_program = False

    def feed(self, piece: bytes | memoryview) -> None:
        data = self._rest + bytes(piece)
        self._tail = (self._tail + bytes(piece[-_TAIL:]))[-_TAIL:]
        at = 0
        while at < len(data):
            after = self._rows(data, at) if self._table is not None else self._line(data, at)
            if after < 0:
                break
            at = after
        self._rest = data[at:]

    @property
    def is_complete(self) -> bool:
        """Whether the last line says so."""
        lines = self._tail.rstrip().splitlines()
        return bool(lines) and lines[-1].startswith(_COMPLETED) and self._table is None

    def _line(self, data: bytes, at: int) -> int:
        """Where what follows begins; -1 when more must be seen first."""
        end = data.find(b"\n", at)
        if self._in_line:
            self._in_line = end < 0
            return len(data) if end < 0 else end + 1
        if not self._in_program and data.startswith(b"INSERT INTO `", at):
            if found := _INSERT.match(data, at):
                self._table = unquoted(found[1])
                self._in_string = False
                self.rows.setdefault(self._table, 0)
                return found.end()
            if end < 0 and len(data) - at < _HEADER_LIMIT:
                return -1
            self.odd = data[at : at + 100].decode("utf-8", "replace")
        elif end < 0 and len(data) - at < _TAIL * 4:
            return -1
        line = data[at : end if end >= 0 else at + _TAIL * 4]
        if line.startswith(b"DELIMITER "):
            self._in_program = line.split() != [b"DELIMITER", b";"]
        elif self._in_program:
            pass
        elif found := _TABLE.match(line):
            if line.startswith(b"CREATE TABLE"):
                self.rows.setdefault(unquoted(found[1]), 0)
        elif found := _BINLOG.match(line):
            self.binlog = found[1].decode("utf-8", "replace"), int(found[2])
        elif found := _GTID.match(line):
            self.gtid = found[1].decode("ascii")
        self._in_line = end < 0
        return len(data) if end < 0 else end + 1

    def _rows(self, data: bytes, at: int) -> int:
        end = data.find(b";\n", at)
        stop = end
        if end < 0:
            stop = len(data) - (1 if data.endswith(b";") else 0)
            stop -= (stop - at - len(data[at:stop].rstrip(b"\\"))) % 2
            if stop <= at:
                return -1
        segment = data[at:stop]
        if b"\\" in segment:
            segment = segment.replace(b"\\\\", b"").replace(b"\\'", b"")
        parts = segment.split(b"'")
        assert self._table is not None
        self.rows[self._table] += sum(part.count(b"(") for part in parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        if end < 0:
            return stop
        self._table = None
        return end + 2


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a dump, without its delimiter."""

    text: bytes
    is_program: bool
    """It stood between ``DELIMITER ;;`` and ``DELIMITER ;``."""


def statements(pieces: Iterator[bytes | memoryview], *, limit: int) -> Iterator[Statement]:
    """What a dump consists of, in order. Comments are left out.

    `limit`: bytes of the longest statement, which is held in memory. Raises CorruptBackup for what is no dump or is
    cut off, RestoreError for a statement beyond the limit, and what `pieces` raises.
    """
    text = _Text(pieces, limit)
    head = text.line()
    if head is None or not head.startswith(_HEADS):
        raise CorruptBackup("what the backup has is not a dump of a MySQL database")
    delimiter, completed = b";", False
    while (line := text.line()) is not None:
        if not line.strip() or line.startswith((b"--", *_SANDBOX)):
            completed = completed or line.startswith(_COMPLETED)
            text.skip(line)
            continue
        if completed:
            raise CorruptBackup("the dump goes on after its end")
        if line.startswith(b"DELIMITER "):
            delimiter = line.split()[1]
            if delimiter not in (b";", b";;"):
                raise CorruptBackup("the dump is not as mysqldump writes it")
            text.skip(line)
            continue
        yield Statement(text.statement(delimiter), delimiter == b";;")
    if not completed:
        raise CorruptBackup("the dump is cut off: its last line is missing")


class _Text:
    """A window on the dump."""

    def __init__(self, pieces: Iterator[bytes | memoryview], limit: int) -> None:
        self._pieces = pieces
        self._limit = limit
        self._data = bytearray()
        self._at = 0

    def line(self) -> bytes | None:
        """The next line with its end, or its beginning where it is long. None at the end of the dump."""
        while (end := self._data.find(b"\n", self._at)) < 0:
            if len(self._data) - self._at > _HEADER_LIMIT or not self._more():
                break
        line = bytes(self._data[self._at : self._at + _HEADER_LIMIT if end < 0 else end + 1])
        return line or None

    def skip(self, line: bytes) -> None:
        self._at += len(line)

    def statement(self, delimiter: bytes) -> bytes:
        """Everything up to the delimiter at the end of a line."""
        ending = delimiter + b"\n"
        seen = 0
        """Offset from where the statement begins: reading on moves it in the window."""
        while True:
            end = self._data.find(ending, self._at + seen)
            if end < 0:
                seen = max(0, len(self._data) - self._at - len(ending) + 1)
                if not self._more():
                    raise CorruptBackup("the dump is cut off in the middle of a statement")
                continue
            seen = end - self._at
            while len(self._data) - self._at - seen < _TAIL and self._more():
                pass
            end = self._at + seen
            if self._is_end(end, end + len(ending), delimiter):
                text = bytes(self._data[self._at : end])
                self._at = end + len(ending)
                return text.strip()
            seen += 1

    def _is_end(self, end: int, after: int, delimiter: bytes) -> bool:
        if delimiter == b";;":
            # A program may hold anything, an apostrophe in a comment included. What follows one is known.
            return self._data.startswith(_AFTER_PROGRAM, after)
        if self._data.startswith(b"INSERT ", self._at):
            return True
        return _BALANCED.fullmatch(self._data, self._at, end) is not None

    def _more(self) -> bool:
        """Reads on. What was given out is forgotten, so offsets change by what `_at` does."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        del self._data[: self._at]
        self._at = 0
        self._data += piece
        if len(self._data) > self._limit + len(piece):
            raise RestoreError(
                f"the dump has a statement of more than {self._limit} bytes, which the server would not take",
                hint="Raise max_allowed_packet of the server.",
            )
        return True
