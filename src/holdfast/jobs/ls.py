"""List what a backup holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.model import Entry, parse_components


def ls(
    installation: Installation, reference: str, *, components: Sequence[str] | None = None
) -> Iterator[Entry]:
    """The entries of a backup, in order. Raises BackupNotFound, CorruptBackup, KeyMissing, KeyWrong."""
    repository, metadata = locate(installation, reference)
    wanted = parse_components(list(components)) if components is not None else metadata.components
    with repository.lent(), repository.open(metadata) as stored:
        for source in stored.sources():
            if source.component in wanted:
                yield from stored.entries(source)
