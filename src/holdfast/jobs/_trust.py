"""Whose backups are believed."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.crypto import fingerprint, verify
from holdfast.errors import HostileBackup, UntrustedSignature
from holdfast.installation import Installation
from holdfast.model import BackupMetadata
from holdfast.repository.base import Repository

Confirm = Callable[[str], bool]
"""Puts a question to a person. False where nobody can answer."""


def check_signature(
    installation: Installation,
    repository: Repository,
    metadata: BackupMetadata,
    *,
    trust: bool,
    vouch: Confirm,
) -> None:
    """Encryption proves nothing about who wrote a backup: anyone may encrypt to a recipient. Its signature does.

    Passes a signature by this host or by a key that was pinned here. Where nothing is pinned yet (a new machine),
    a person may confirm the fingerprint, which pins it. Raises UntrustedSignature otherwise, unless `trust`; and
    HostileBackup for a signature that is wrong, `trust` or not.
    """
    signature, statement = repository.signature_of(metadata)
    if signature is not None and not verify(signature.key, signature.value, statement):
        raise HostileBackup(f"{metadata.backup_id}: its signature does not fit its content")
    if trust:
        return
    known = installation.trusted_keys()
    if signature is None:
        if not known and vouch(f"{metadata.backup_id} is not signed. Use it all the same?"):
            return
        raise UntrustedSignature(
            f"{metadata.backup_id} is not signed, so nothing tells who made it",
            hint="If you know where it comes from, add --trust.",
        )
    if signature.key in known:
        return
    print_ = fingerprint(signature.key)
    # A copy is signed by who copied it, which is not told.
    host = "the host that copied it" if metadata.original is not None else metadata.host
    if not known and vouch(f"{metadata.backup_id} was signed on {host} by {print_}. Is that your key?"):
        installation.state.trust(signature.key)
        return
    raise UntrustedSignature(
        f"{metadata.backup_id} is signed by {print_}, which this installation does not know",
        hint=f"Compare it with `holdfast check` on {host or 'the host that made it'}, then add --trust.",
    )
