"""Settings: found, checked and refused in one place.

Whatever asks for a setting asks `Settings`, which is complete and cannot change. The first of these that
gives a value wins:

1. a `BackupConfig` given in code, all eight fields of it, since whoever writes one means it;
2. the environment;
3. ``.env`` in the service root, of which only our variables count;
4. ``holdfast.toml``;
5. the defaults.

Each of them is checked by itself, so a wrong value is refused even where another one hides it.
"""

from __future__ import annotations

from holdfast.config._backup_config import BackupConfig
from holdfast.config._databases import DatabaseSpec
from holdfast.config._files import FilesSpec
from holdfast.config._settings import Settings, load_settings
from holdfast.config._tables import is_email_address

__all__ = ["BackupConfig", "DatabaseSpec", "FilesSpec", "Settings", "is_email_address", "load_settings"]
