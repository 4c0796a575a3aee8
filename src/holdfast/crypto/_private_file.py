"""Files that hold a secret: 0600, created whole or not at all, refused when others may read them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import BinaryIO

from holdfast.errors import CredentialError, KeyMissing

StrPath = str | os.PathLike[str]

# A key file holds a few lines. Anything larger is some other file, named by mistake.
_MAX_SIZE = 1 << 20


def read_private(path: StrPath) -> bytes:
    """Return the content of a file that nobody but its owner may read.

    Raises ``KeyMissing`` when there is none, and ``CredentialError`` when others may read or change it,
    when it is not a regular file, is larger than 1 MiB, or cannot be read.
    """
    name = os.fspath(path)
    with _open(name) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CredentialError(f"The key file {name} is not a regular file.", hint="Name the file itself.")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise CredentialError(
                f"The key file {name} is open to other users (mode {mode:04o}).",
                hint=f"Run `chmod 600 {name}`. If others may have read it, make a new key.",
            )
        content = file.read(_MAX_SIZE + 1)
    if len(content) > _MAX_SIZE:
        raise CredentialError(
            f"{name} is too large for a key file.", hint="Name the file that holds the key."
        )
    return content


def _open(name: str) -> BinaryIO:
    try:
        # O_NONBLOCK: a fifo in the file's place must be refused, not waited for.
        return open(name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
    except FileNotFoundError:
        raise KeyMissing(
            f"There is no key file {name}.", hint="Check the path, or make one with `holdfast key new`."
        ) from None
    except OSError as error:
        raise CredentialError(
            f"The key file {name} cannot be read: {error.strerror}.", hint="Run as the user who owns it."
        ) from error


def write_private(path: StrPath, content: bytes) -> None:
    """Create the file with mode 0600 and make it durable. A file that exists is never replaced.

    It appears under its name with all of its content, so neither a crash nor a second process at the same
    moment can meet half a key.

    Raises ``CredentialError`` when the file exists or cannot be written.
    """
    name = os.fspath(path)
    directory = os.path.dirname(os.path.abspath(name))
    temporary = os.path.join(directory, f".{os.path.basename(name)}.{secrets.token_hex(8)}")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            # Unlike a rename, a link never replaces what is there.
            os.link(temporary, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_directory(directory)
    except FileExistsError:
        raise CredentialError(
            f"{name} exists and is not replaced.",
            hint="Choose another path. A lost key loses every backup that only it opens.",
        ) from None
    except OSError as error:
        raise CredentialError(
            f"The key file {name} cannot be written: {error.strerror}.",
            hint="Check that its directory exists, is yours, and has room.",
        ) from error


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
