"""The manifest of a backup as an object: zstd of JSON lines, sealed with age where backups are encrypted.

docs/repository-format.md, Manifests. The lines are those of `holdfast.repository._manifest`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import IO, TYPE_CHECKING

import zstandard

from holdfast.crypto import OpeningReader, Recipient, SealingWriter, is_age_file
from holdfast.crypto.keyring import KeyRing
from holdfast.durable import free_bytes, private_file, temp_directory
from holdfast.errors import CorruptBackup, HostileBackup, NoSpace
from holdfast.model import BackupMetadata, SourceRecord
from holdfast.repository import _manifest as manifest
from holdfast.repository._file_at import FileAt
from holdfast.repository._manifest import End, Header, PackRef, SourceKey
from holdfast.repository._rows import Lines, Rows
from holdfast.repository.dedup._names import is_run
from holdfast.storage.base import Upload
from holdfast.streams import RandomAccess

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LEVEL = 3
_PIECE = 1 << 20
_MANIFEST_LIMIT = 1 << 40
_SOURCES_LIMIT = 1000
_WINDOW_LOG = 27
"""Zstandard's own limit for decoders: 128 MiB."""


class ManifestWriter:
    """A manifest being written. Lines are kept in a private file until the packs are known that they speak of."""

    def __init__(self, header: Header, *, repository: str, run: str) -> None:
        head = json.loads(manifest.header_line(header))
        self._head = json.dumps(
            {**head, "repository": repository, "run": run}, separators=(",", ":")
        ).encode()
        self._head += b"\n"
        self._rows = private_file()

    def write(self, line: bytes) -> None:
        self._rows.write(line)

    def writelines(self, lines: Iterable[bytes]) -> None:
        self._rows.writelines(lines)

    def finish(
        self,
        upload: Upload,
        recipients: Sequence[Recipient],
        packs: Sequence[PackRef],
        records: Sequence[SourceRecord],
        *,
        coherent: bool | None,
    ) -> tuple[str, int]:
        """Writes the object, up to its publishing. Without recipients it is not encrypted. Returns the SHA-256 of
        the lines, and their bytes."""
        entries = sum(record.entries for record in records)
        size = sum(record.bytes for record in records)
        end = manifest.end_line(entries, size, records, coherent=coherent)
        seal = SealingWriter(upload, recipients) if recipients else None
        digest, total = hashlib.sha256(), 0
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        with compressor.stream_writer(seal or upload, closefd=False) as packed:  # type: ignore[arg-type]
            for piece in chain([self._head], _contents(self._rows), manifest.packs_lines(packs), [end]):
                digest.update(piece)
                total += len(piece)
                packed.write(piece)
        if seal is not None:
            seal.close()
        self._end = end
        self._packs = packs
        return digest.hexdigest(), total

    def as_list(self) -> Iterator[bytes]:
        """The lines in the order of a list in the local state, the packs before the rows. After `finish`."""
        yield self._head
        yield from manifest.packs_lines(self._packs)
        yield from _contents(self._rows)
        yield self._end

    def close(self) -> None:
        with suppress(OSError):  # What is left in its buffer is of no use any more.
            self._rows.close()


class ManifestReader:
    """A manifest, proved and laid out in a private file."""

    def __init__(
        self, source: RandomAccess, metadata: BackupMetadata | None, keys: KeyRing | None, *, name: str
    ) -> None:
        """`metadata`: what it must agree with. `keys` are needed where it is encrypted.

        Raises CorruptBackup, HostileBackup, KeyWrong, NoSpace.
        """
        self.name = name
        plain: RandomAccess = source
        if is_age_file(source.read_at(0, 64)):
            plain = OpeningReader(source, keys.identities if keys is not None else (), name=name)
        self._file, self.digest, self.size = _unpack(plain, metadata, name)
        try:
            self._sections: dict[SourceKey, int] = {}
            self.packs: list[PackRef] = []
            self._file.seek(0)
            line = self._file.readline()
            offset = len(line)
            self.header: Header = manifest.parse_header(line)
            self.repository, self.run = _origin(line, name)
            for line in self._file:
                offset += len(line)
                if not manifest.is_known(line):
                    raise CorruptBackup(f"{name}: the manifest has a line of no known kind")
                if section := manifest.source_of(line):
                    self._section(*section, offset)
                elif packs := manifest.parse_packs(line):
                    self.packs += packs
                    if len(self.packs) > manifest.PACKS_LIMIT:
                        raise HostileBackup(f"{name}: the manifest lists more packs than any backup needs")
            self.end: End = manifest.parse_end(line)
            self._check(metadata)
        except BaseException:
            self._file.close()
            raise

    def rows(self, key: SourceKey) -> Rows:
        """The entries of a source, as a cursor of their own. Raises CorruptBackup if there are none."""
        try:
            offset = self._sections[key]
        except KeyError:
            raise CorruptBackup(f"{self.name}: {' '.join(key)} has no entries in the manifest") from None
        return Rows(Lines(io.BufferedReader(FileAt(self._file.fileno(), offset), _PIECE)))

    def as_list(self) -> Iterator[bytes]:
        """The lines in the order of a list in the local state."""
        lines = Lines(io.BufferedReader(FileAt(self._file.fileno(), 0), _PIECE))
        yield lines.line
        yield from manifest.packs_lines(self.packs)
        lines.advance()
        while lines.line:
            if manifest.parse_packs(lines.line) is None:
                yield lines.line
            lines.advance()

    def close(self) -> None:
        self._file.close()

    def _section(self, key: SourceKey, whole: bool, offset: int) -> None:
        if key in self._sections or len(self._sections) >= _SOURCES_LIMIT:
            raise HostileBackup(
                f"{self.name}: the manifest lists a source twice, or more than any service has"
            )
        if not whole:
            raise CorruptBackup(f"{self.name}: a source is said not to be whole")
        self._sections[key] = offset

    def _check(self, metadata: BackupMetadata | None) -> None:
        keys = [(record.component, record.name) for record in self.end.sources]
        if sorted(keys) != sorted(self._sections) or {key[0] for key in keys} - set(self.header.components):
            raise CorruptBackup(f"{self.name}: the manifest's sources contradict each other")
        if metadata is not None:
            self.header.check(metadata, self.end, self.name)


def _origin(line: bytes, name: str) -> tuple[str, str]:
    data = json.loads(line)
    repository, run = data.get("repository"), data.get("run")
    if not is_run(repository) or not is_run(run):
        raise CorruptBackup(f"{name}: the manifest does not say which repository it belongs to")
    return str(repository), str(run)


def _unpack(plain: RandomAccess, metadata: BackupMetadata | None, name: str) -> tuple[IO[bytes], str, int]:
    location = metadata.manifest if metadata is not None else None
    limit = location.size if location is not None else _MANIFEST_LIMIT
    if location is not None and location.size > free_bytes(temp_directory()):
        raise NoSpace(
            f"{temp_directory()} has no room for the manifest's {location.size} bytes", hint="Set TMPDIR."
        )
    digest, total, since_newline = hashlib.sha256(), 0, 0
    file = private_file()
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
        raw = io.BufferedReader(_Stream(plain), _PIECE)
        with decompressor.stream_reader(raw, read_across_frames=False, closefd=False) as unpacked:
            while piece := unpacked.read(_PIECE):
                total += len(piece)
                if total > limit:
                    raise CorruptBackup(f"{name}: the manifest is longer than it should be")
                newline = piece.rfind(b"\n")
                since_newline = since_newline + len(piece) if newline < 0 else len(piece) - newline
                if since_newline > 4 * manifest.LINE_LIMIT:
                    raise CorruptBackup(f"{name}: the manifest has an absurdly long line")
                digest.update(piece)
                file.write(piece)
        if location is not None and (digest.hexdigest(), total) != (location.digest, location.size):
            raise CorruptBackup(f"{name}: the manifest is not the one that its metadata names")
    except zstandard.ZstdError as error:
        file.close()
        raise CorruptBackup(f"{name}: the manifest cannot be unpacked: {error}") from error
    except BaseException:
        file.close()
        raise
    return file, digest.hexdigest(), total


def _contents(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece


class _Stream(io.RawIOBase):
    """Random access, read from its start."""

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read_at(self._offset, min(len(view), _PIECE))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)
