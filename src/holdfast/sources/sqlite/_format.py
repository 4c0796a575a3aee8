"""What SQLite's files begin with, and are called: https://www.sqlite.org/fileformat2.html."""

from __future__ import annotations

MAGIC = b"SQLite format 3\0"
"""How a database file begins: https://www.sqlite.org/fileformat2.html, section 1.3."""
LOGS = ("-wal", "-journal")
SIDE_FILES = (*LOGS, "-shm")
