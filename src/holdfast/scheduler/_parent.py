"""What an incremental backup of a schedule rests on."""

from __future__ import annotations

from holdfast.installation import Installation
from holdfast.model import BackupMetadata
from holdfast.schedules import Schedule


def parent_of(installation: Installation, schedule: Schedule) -> BackupMetadata | None:
    """The newest good full backup, by whatever schedule or by hand, that is there and holds all the schedule's
    components; None where there is none, and the run is to make one.

    On a full backup of the database alone every incremental would carry all the models again.
    """
    wanted = {
        component
        for component in schedule.components
        if not schedule.default_components or installation.sources([component])
    }
    repository = installation.repository
    for metadata in repository.backups("full"):
        fits = metadata.format == repository.writes and wanted <= set(metadata.components)
        if metadata.is_good and fits and repository.is_present(metadata):
            return metadata
    return None
