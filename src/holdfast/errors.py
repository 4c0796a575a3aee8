"""Every error that Holdfast raises on purpose.

The tree, with exit codes::

    HoldfastError                       1
    ├── ConfigError                     2   a setting is wrong, unknown or contradictory
    │   └── UsageError                  2   an argument is wrong
    ├── SourceError                     1   something to back up could not be read or written
    │   ├── SourceMissing
    │   ├── SourceChanged                   it changed while it was read
    │   ├── SourceUnreadable
    │   ├── HookFailed                      a command of the user's own
    │   └── DatabaseError                   "Database backup failed: …" and its like
    │       └── DatabaseBusy
    ├── RepositoryError                 1
    │   ├── BackupNotFound              10
    │   ├── ParentMissing
    │   ├── SizeLimitExceeded
    │   └── StorageError                    the disk (or what stands in for it) refused
    │       └── NoSpace
    ├── CorruptBackup                   1   truncated, bit-flipped, or not what its manifest says
    │   └── HostileBackup                   it asks for what no honest backup asks
    ├── CredentialError                 12
    │   ├── KeyMissing                  12
    │   ├── KeyWrong                    12
    │   └── UntrustedSignature          12
    ├── RestoreError                    1
    │   ├── ConfirmationRequired        2
    │   ├── NothingToUndo               1
    │   └── JournalRefused              1   a journal that others could have written
    ├── LockHeld                        11
    └── Interrupted                     130

Each class owns its exit code. Each error says what happened and to which thing; ``hint`` says what to do.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_WARNINGS = 3


class HoldfastError(Exception):
    """The root of the tree."""

    exit_code: ClassVar[int] = EXIT_FAILED
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint


class ConfigError(HoldfastError):
    """A setting is wrong, unknown, or contradicts another."""

    exit_code = EXIT_USAGE


class UsageError(ConfigError):
    """An argument of a command or a call is wrong."""


class SourceError(HoldfastError):
    """Something to back up could not be read, or could not be written back."""


class SourceMissing(SourceError):
    """A source that is configured, or that the parent backup had, is not there."""


class SourceChanged(SourceError):
    """A file changed while it was read."""

    default_hint = "Stop what writes to it, or back up a copy that is written once and renamed into place."


class SourceUnreadable(SourceError):
    """The operating system refused to let us read a file."""

    default_hint = "Run as a user that may read it, or exclude it in holdfast.toml."


class DatabaseError(SourceError):
    """A database could not be dumped or loaded."""


class DatabaseBusy(DatabaseError):
    """A database stayed locked by another process until our deadline."""

    default_hint = (
        "Find the process that holds a transaction open, or raise database_timeout in holdfast.toml."
    )


class HookFailed(SourceError):
    """A command that the user wants to run before or after a backup failed."""

    default_hint = "Its own output says why. Commands stand under [hooks] in holdfast.toml."


class RepositoryError(HoldfastError):
    """The place where backups live refused, or does not hold what was asked for."""


class BackupNotFound(RepositoryError):
    """No backup has that id."""

    exit_code = 10
    default_hint = "`holdfast list` shows the backups there are."


class ParentMissing(RepositoryError):
    """An incremental has nothing to rest on."""

    default_hint = "Take a full backup first: `holdfast backup`."


class SizeLimitExceeded(RepositoryError):
    """The backup would pass BACKUP_MAX_SIZE_GB."""

    default_hint = "Raise BACKUP_MAX_SIZE_GB, or exclude what need not be kept."


class StorageError(RepositoryError):
    """The disk, or what stands in for it, refused."""


class NoSpace(StorageError):
    """There is not enough room."""

    default_hint = "Free some space, or `holdfast expire` old backups."


class CorruptBackup(HoldfastError):
    """Stored data is truncated, altered, or not what its manifest says."""

    default_hint = "Restore an older backup: `holdfast verify --all` shows which ones are good."


class HostileBackup(CorruptBackup):
    """A backup asks for what no honest backup asks: to write outside its target, or more than it declared."""

    default_hint = "Do not restore it. Find out who could write to the backup directory."


class CredentialError(HoldfastError):
    """A key is missing or wrong."""

    exit_code = 12


class KeyMissing(CredentialError):
    """A key is needed and none is configured."""


class KeyWrong(CredentialError):
    """None of the configured keys opens this backup."""


class UntrustedSignature(CredentialError):
    """A backup is unsigned, or signed by a key that this installation does not know."""


class RestoreError(HoldfastError):
    """A restore could not be done. The data is as it was before."""


class ConfirmationRequired(RestoreError):
    """Existing data would be replaced and nobody has agreed to it."""

    exit_code = EXIT_USAGE
    default_hint = "Add --confirm, or restore elsewhere with --target DIR."


class NothingToUndo(RestoreError):
    """No restore is kept that could be taken back."""


class JournalRefused(RestoreError):
    """A restore journal belongs to, or could have been written by, somebody else."""


class LockHeld(HoldfastError):
    """Another run holds the lock."""

    exit_code = 11
    default_hint = "Wait until it has finished."


class Interrupted(HoldfastError):
    """The user, or the system, asked us to stop."""

    exit_code = 130
