"""Make, change and print the key."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.crypto import Identity, KeyRing, X25519Identity, X25519Recipient, fingerprint, write_key_file
from holdfast.errors import KeyMissing, KeyWrong, UsageError
from holdfast.events import Emit, Noted, StageStarted, Warned
from holdfast.installation import Installation

_TEXT_LIMIT = 1 << 16


def new_key(installation: Installation, path: Path) -> str:
    """Writes a new age identity to `path`, 0600, and returns its recipient. Raises CredentialError if it is taken."""
    identity = X25519Identity.generate()
    write_key_file(path, identity, installation.clock())
    return str(identity.recipient)


def rotate_key(installation: Installation, to: Path | None, emit: Emit) -> int:
    """Wraps every archive's own key anew, for the key in the file `to`, or for a new identity that takes the place
    of the one in the key file. What is encrypted with the archives' own keys is copied as it is.

    An interrupted rotation goes on where it stopped. It cannot take back what the old key has opened already, nor
    reach copies elsewhere. Returns how many archives were changed. Raises KeyMissing, KeyWrong, UsageError.
    """
    old = installation.keys()
    if not old.can_decrypt:
        raise KeyMissing(
            "rotating needs the identity, and there are only recipients here",
            hint="Set ENCRYPTION_KEY to the identity for this command.",
        )
    repository = installation.repository
    with repository.expiring():
        if to is not None:
            new = _read(to)
            rotated = _rewrap(installation, old, new, emit)
            emit(Noted(f"from now on, set ENCRYPTION_KEY to the key in {to}"))
            return rotated
        path = installation.settings.key_file
        if path is None or installation.settings.encryption_key is not None:
            raise UsageError(
                "the key comes from ENCRYPTION_KEY, which no command can change",
                hint="Write the new key to a file that only you can read, and name it with --to.",
            )
        return _rotate_file(installation, path, old, emit)


def _rotate_file(installation: Installation, path: Path, old: KeyRing, emit: Emit) -> int:
    waiting = path.with_name(path.name + ".new")
    previous = path.with_name(f"{path.name}.{installation.clock():%Y%m%d_%H%M%S}.old")
    if not waiting.exists():
        new_key(installation, waiting)
    # Until the last archive is done both keys are needed, and both are in files beside each other.
    rotated = _rewrap(installation, old, _read(waiting), emit)
    os.link(path, previous)
    os.replace(waiting, path)
    emit(Noted(f"the new key is in {path}; the old one, which still opens older copies, in {previous}"))
    return rotated


def _rewrap(installation: Installation, old: KeyRing, new: KeyRing, emit: Emit) -> int:
    rotated = 0
    for metadata in installation.repository.backups():
        if not metadata.is_good or not metadata.encrypted:
            continue
        emit(StageStarted("rotate", metadata.backup_id, metadata.size_bytes))
        try:
            rotated += installation.repository.rewrap(metadata, old, new)
        except KeyWrong:
            emit(Warned(f"{metadata.backup_id} is not opened by the key of now, and is left as it is"))
    return rotated


def writer_key(installation: Installation) -> str:
    """What other hosts need to find in the repository what this one stores: a secret line. Raises KeyMissing."""
    return installation.repository.dedup.writer_key()


def adopt_writer_key(installation: Installation, text: str) -> bool:
    """Takes what `writer_key` gave on another host. False when it is this host's already. Raises KeyWrong, and
    RepositoryError when backups were made here with another."""
    installation.state.make()
    return installation.repository.dedup.adopt_writer_key(text)


def _read(path: Path) -> KeyRing:
    return KeyRing.parse(read_secret(path).strip())


def read_secret(path: Path) -> bytes:
    """What a file holds that nobody else may read. Raises UsageError."""
    try:
        status = path.stat()
        if status.st_mode & 0o077:
            raise UsageError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        if status.st_size > _TEXT_LIMIT:
            raise UsageError(f"{path} is too long for a key")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def key_sheet(installation: Installation) -> str:
    """A page for a safe: the key, and how to restore with it on a machine that has neither Holdfast nor us."""
    keys = installation.keys()
    secrets = [_spelled(identity) for identity in keys.identities]
    if not secrets:
        raise KeyMissing(
            "there are only recipients here, and they open nothing", hint="Print it where the identity is."
        )
    public = [str(recipient) for recipient in keys.recipients if isinstance(recipient, X25519Recipient)]
    return "\n".join(
        [
            "HOLDFAST KEY SHEET",
            "",
            f"Printed {installation.clock():%Y-%m-%d}. Keep it where fire and thieves do not come.",
            f"Backups of: {installation.settings.root}",
            f"Backups in: {installation.settings.backup_dir}",
            *(f"Recipient (public): {recipient}" for recipient in public),
            f"Signed by: {fingerprint(installation.signing_key().public)}",
            "",
            "Key (secret):",
            *(f"    {secret}" for secret in secrets),
            "",
            "To restore: write the line above to a file key.txt, then",
            '    ENCRYPTION_KEY="$(cat key.txt)" holdfast restore latest',
            "or, without Holdfast, with age (https://age-encryption.org) and tar:",
            "    age -d -i key.txt full_….tar.gz.enc | tar xz"
            if public
            else "    age -d full_….tar.gz.enc | tar xz       (it asks for the key)",
        ]
    )


def _spelled(identity: Identity) -> str:
    return identity.reveal() if isinstance(identity, X25519Identity) else identity.encode().decode()
