"""Prove that the set-up works, before it is needed."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from holdfast.absence import absence
from holdfast.clock import timestamp
from holdfast.crypto import OpeningReader, SealingWriter, fingerprint
from holdfast.durable import free_bytes
from holdfast.errors import HoldfastError, KeyWrong
from holdfast.installation import Installation
from holdfast.model import COMPONENTS, Component, Finding
from holdfast.notify import faults
from holdfast.schedules import ScheduleFile

_SCHEDULER_LATE = timedelta(minutes=15)
"""A scheduler checks every 5 minutes; what else it does at a check takes some too."""
_LONG_RUN = timedelta(days=1)


def check(installation: Installation) -> list[Finding]:
    """Looks at everything that a backup and a restore need. Changes nothing but for making the signing key."""
    looks = {
        "settings": _settings,
        "key": _key,
        "signing key": _signing_key,
        "backup directory": _backup_directory,
        "sources": _sources,
        "backups": _backups,
        "schedules": _schedules,
        "notifications": _notifications,
    }
    findings: list[Finding] = []
    for subject, look in looks.items():
        try:
            findings += look(installation)
        except HoldfastError as error:
            findings.append(_failed(subject, error))
    return findings


def _failed(subject: str, error: HoldfastError) -> Finding:
    told = str(error)
    if not told.endswith((".", "?", "!")):  # What a server says may be a sentence.
        told += "."
    return Finding(subject, "FAILED", f"{told} {error.hint}".strip())


def _settings(installation: Installation) -> Iterator[Finding]:
    settings = installation.settings
    settings.check_paths()
    yield Finding("settings", "ok", str(settings.config_file or f"defaults, in {settings.root}"))


def _key(installation: Installation) -> Iterator[Finding]:
    if not installation.settings.encrypt:
        yield Finding("key", "warning", "BACKUP_ENCRYPT is off: whoever can read a backup can read your data")
        return
    keys = installation.keys()
    if not keys.can_decrypt:
        yield Finding("key", "ok", "recipients only: this host can make backups, and cannot read them")
        return
    secret = secrets.token_bytes(64)
    sealed = io.BytesIO()
    # The weakest scrypt: what is proved is that the key fits, not how long guessing it takes.
    with SealingWriter(sealed, keys.recipients, work_factor=1) as writer:
        writer.write(secret)
    if OpeningReader(_Bytes(sealed.getvalue()), keys.identities).read_at(0, 64) != secret:
        raise KeyWrong("the key does not open what it has sealed")
    yield Finding("key", "ok", "opens what it seals")


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _signing_key(installation: Installation) -> Iterator[Finding]:
    yield Finding("signing key", "ok", fingerprint(installation.signing_key().public))


def _backup_directory(installation: Installation) -> Iterator[Finding]:
    directory = installation.settings.backup_dir
    with installation.repository.expiring():
        free = free_bytes(directory)
    detail = f"{directory}, {free / 1e9:.1f} GB free"
    last = next((known for known in installation.repository.backups("full") if known.is_good), None)
    if last is not None and free < last.size_bytes:
        yield Finding("backup directory", "FAILED", f"{detail}: less than the last full backup took")
    else:
        yield Finding("backup directory", "ok", detail)


def _sources(installation: Installation) -> Iterator[Finding]:
    defaults = installation.settings.default_components()
    for component in COMPONENTS:
        try:
            yield from _component(installation, component, wanted=component in defaults)
        except HoldfastError as error:
            yield _failed(component, error)


def _component(installation: Installation, component: Component, *, wanted: bool) -> Iterator[Finding]:
    sources = installation.sources([component])
    if not sources:
        yield _none_found(installation, component, wanted=wanted)
    for source in sources:
        try:
            for finding in source.check():
                told = finding.detail + ("" if wanted else ", not in a backup by default")
                yield replace(finding, detail=told)
        except HoldfastError as error:  # The others are looked at all the same.
            subject = f"{component} {source.name}".removesuffix(f" {component}")
            yield _failed(subject, error)


def _none_found(installation: Installation, component: Component, *, wanted: bool) -> Finding:
    last = next((known for known in installation.repository.backups("full") if known.is_good), None)
    if wanted and last is not None and component in last.components:
        return Finding(
            component, "warning", f"none found, and the last full backup, {last.backup_id}, has it"
        )
    return Finding(component, "ok", "none found")


def _backups(installation: Installation) -> Iterator[Finding]:
    backups = installation.repository.backups()
    damaged = [metadata.backup_id for metadata in backups if metadata.status == "damaged"]
    if damaged:
        yield Finding(
            "backups", "FAILED", f"metadata damaged: {', '.join(damaged[:5])}; try `holdfast repair`"
        )
    good = [metadata for metadata in backups if metadata.is_good]
    alarm_hours = installation.settings.alarm_hours
    if alarm_hours is not None and (missing := absence(backups, installation.clock(), alarm_hours)):
        yield Finding("backups", "FAILED", str(missing))
        return
    if not good:
        yield Finding("backups", "warning", "there is none yet")
        return
    hours = (installation.clock() - good[0].moment).total_seconds() / 3600
    yield Finding("backups", "ok", f"{len(good)}, the last one {good[0].backup_id}, {hours:.1f} hours ago")


def _schedules(installation: Installation) -> Iterator[Finding]:
    schedules = ScheduleFile(installation.settings.backup_dir).read().values()
    for schedule in schedules:
        if schedule.status == "disabled":
            detail = (
                f"{schedule.schedule_id} is disabled after {schedule.consecutive_failures} failures in a row"
            )
            yield Finding("schedules", "warning", f"{detail}: `holdfast schedule enable`")
    active = [schedule for schedule in schedules if schedule.status == "active"]
    if not active:
        return
    first = min(active, key=lambda schedule: schedule.next_run)
    now = installation.clock()
    # A run that is at work keeps the others waiting. Where it was killed, that it began is all there is to see.
    at_work = any(known.started_at is not None and known.started_at + _LONG_RUN > now for known in active)
    if not at_work and first.next_run + _SCHEDULER_LATE < now:
        detail = f"{first.schedule_id} is due since {timestamp(first.next_run)} UTC, and did not run"
        yield Finding("schedules", "warning", f"{detail}: is a `holdfast scheduler` at work?")
    else:
        yield Finding(
            "schedules", "ok", f"{len(active)}, the next one is due at {timestamp(first.next_run)} UTC"
        )


def _notifications(installation: Installation) -> Iterator[Finding]:
    for fault in faults(installation.settings):
        yield Finding("notifications", "FAILED", fault)
