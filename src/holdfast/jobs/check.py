"""Prove that the set-up works, before it is needed."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from dataclasses import replace

from holdfast.absence import absence
from holdfast.crypto import OpeningReader, SealingWriter, fingerprint
from holdfast.durable import free_bytes
from holdfast.errors import HoldfastError, KeyWrong
from holdfast.installation import Installation
from holdfast.model import COMPONENTS, Component, Finding
from holdfast.notify import faults


def check(installation: Installation) -> list[Finding]:
    """Looks at everything that a backup and a restore need. Changes nothing but for making the signing key."""
    looks = {
        "settings": _settings,
        "key": _key,
        "signing key": _signing_key,
        "backup directory": _backup_directory,
        "sources": _sources,
        "backups": _backups,
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
    return Finding(subject, "FAILED", f"{error}. {error.hint}".strip())


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
        yield Finding(component, "ok", "none found")
    for source in sources:
        for finding in source.check():
            told = finding.detail + ("" if wanted else ", not in a backup by default")
            yield replace(finding, detail=told)


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


def _notifications(installation: Installation) -> Iterator[Finding]:
    for fault in faults(installation.settings):
        yield Finding("notifications", "FAILED", fault)
