"""Restores the database from a backup: `restore_database.py ARCHIVE [--confirm] [--create-db]`."""

import sys

from holdfast.cli.restore_database import main

if __name__ == "__main__":
    sys.exit(main())
