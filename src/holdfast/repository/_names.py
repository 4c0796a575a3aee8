"""Where backups lie in a storage, in either format."""

from __future__ import annotations

from holdfast.model import BACKUP_TYPES, BackupMetadata, BackupType, is_backup_id, type_of_id

DIRECTORIES: dict[BackupType, str] = {kind: f"{kind}/" for kind in BACKUP_TYPES}
_METADATA = ".metadata.json"


def archive_name(backup_id: str, *, encrypted: bool) -> str:
    return f"{DIRECTORIES[type_of_id(backup_id)]}{backup_id}.tar.gz" + (".enc" if encrypted else "")


def metadata_name(backup_id: str) -> str:
    return f"{DIRECTORIES[type_of_id(backup_id)]}{backup_id}{_METADATA}"


def manifest_name(backup_id: str) -> str:
    """Of a backup in the deduplicating format."""
    return f"{DIRECTORIES[type_of_id(backup_id)]}{backup_id}.manifest"


def manifest_id(name: str) -> str | None:
    """The backup id in a manifest's file name; None where there is none."""
    found = name.rpartition("/")[2].removesuffix(".manifest")
    return found if name.endswith(".manifest") and is_backup_id(found) else None


def archive_of(metadata: BackupMetadata) -> str:
    return archive_name(metadata.backup_id, encrypted=metadata.encrypted)


def id_of_metadata(name: str) -> str | None:
    """The id in a metadata file's name; None for any other name."""
    return name.rpartition("/")[2].removesuffix(_METADATA) if name.endswith(_METADATA) else None


def archive_id(name: str) -> str | None:
    """The backup id in an archive's file name; None where there is none."""
    found = name.rpartition("/")[2].removesuffix(".enc").removesuffix(".tar.gz")
    return found if is_backup_id(found) else None
