"""Makes the service importable as `app`, as `make setup` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "backend" / "ml-service"))
