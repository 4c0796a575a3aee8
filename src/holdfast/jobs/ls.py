"""List what a backup holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.model import Entry, parse_components
from holdfast.repository.base import SHA256


def ls(
    installation: Installation, reference: str, *, components: Sequence[str] | None = None
) -> Iterator[Entry]:
    """The entries of a backup, in order, with the SHA-256 of their content where the format keeps it.

    Raises BackupNotFound, CorruptBackup, KeyMissing, KeyWrong.
    """
    repository, metadata = locate(installation, reference)
    wanted = parse_components(list(components)) if components is not None else metadata.components
    with repository.lent(), repository.open(metadata) as stored:
        for source in stored.sources():
            if source.component in wanted:
                for entry in stored.entries(source):
                    yield entry if stored.digests == SHA256 else entry._replace(digest="")
