"""Makes the scheduled backups of the service in the current directory: `backup_scheduler.py [--once]`."""

import sys

from holdfast.cli.schedules import main

if __name__ == "__main__":
    sys.exit(main())
