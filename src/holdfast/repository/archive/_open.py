"""One archive opened for reading: its manifest proved and laid out in a private file, its tar within reach."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from holdfast.durable import free_bytes, private_file, temp_directory
from holdfast.errors import CorruptBackup, HostileBackup, NoSpace
from holdfast.model import BackupMetadata
from holdfast.repository import _manifest as manifest
from holdfast.repository._file_at import FileAt
from holdfast.repository._manifest import Header, SourceKey
from holdfast.repository._rows import Lines, Rows
from holdfast.repository.archive._gzip_index import BlockIndex
from holdfast.repository.archive._gzip_reader import GzipReader, stream
from holdfast.repository.archive._tarstream import TarStream
from holdfast.streams import RandomAccess

if TYPE_CHECKING:
    pass

_MANIFEST_LIMIT = 1 << 40
_SOURCES_LIMIT = 1000


class OpenArchive:
    """One level of a chain. `StoredArchive` reads them together."""

    def __init__(self, source: RandomAccess, metadata: BackupMetadata | None, *, name: str) -> None:
        """`source` gives the gzip file, decrypted. Without `metadata` the manifest is searched from the front.

        Raises CorruptBackup when the manifest is not the one that `metadata` names, HostileBackup when it says
        what no honest one says.
        """
        self.name = name
        self.source = source
        """The gzip file."""
        self._manifest, self.manifest_digest, self.manifest_size = _load(source, metadata, name)
        try:
            self._sections: dict[SourceKey, tuple[int, bool]] = {}
            blocks = BlockIndex()
            self._manifest.seek(0)
            end = self._manifest.readline()
            offset = len(end)
            self.header: Header = manifest.parse_header(end)
            for line in self._manifest:
                offset += len(line)
                if not manifest.is_known(line):
                    raise CorruptBackup(f"{name}: the manifest has a line of no known kind")
                if section := manifest.source_of(line):
                    if section[0] in self._sections:
                        raise HostileBackup(f"{name}: the manifest lists a source twice")
                    self._sections[section[0]] = offset, section[1]
                    if len(self._sections) > _SOURCES_LIMIT:
                        raise HostileBackup(f"{name}: the manifest lists more sources than any service has")
                elif listed := manifest.parse_blocks(line):
                    for packed, raw in listed:
                        blocks.append(packed, raw)
                    if blocks.compressed_end > source.size:
                        raise HostileBackup(
                            f"{name}: the manifest lists more blocks than the archive has room for"
                        )
                end = line
            self._end = manifest.parse_end(end)
            self.entries, self.source_bytes, self.sources, self.coherent = self._end
            self.raw_size = blocks.raw_size
            self.manifest_offset = blocks.compressed_end
            """Where the gzip block begins that follows the listed ones: the manifest's."""
            self._check(metadata)
            self.raw = GzipReader(source, blocks, name=name)
        except BaseException:
            self._manifest.close()
            raise

    def rows(self, key: SourceKey) -> tuple[Rows, bool]:
        """The entries of a source here, and whether they are all of it. Raises CorruptBackup if there are none."""
        if key not in self._sections:
            raise CorruptBackup(f"{self.name}: the manifest has no entries for {key[0]} {key[1]}")
        offset, whole = self._sections[key]
        # Each reader keeps a place of its own: a search may go on inside an iteration.
        return Rows(Lines(io.BufferedReader(FileAt(self._manifest.fileno(), offset), 1 << 16))), whole

    def has(self, key: SourceKey) -> bool:
        return key in self._sections

    def lines(self) -> Iterator[bytes]:
        """The manifest from its first line."""
        self._manifest.seek(0)
        yield from self._manifest

    def close(self) -> None:
        self.raw.close()
        self._manifest.close()

    def _check(self, metadata: BackupMetadata | None) -> None:
        keys = [(record.component, record.name) for record in self.sources]
        if sorted(keys) != sorted(self._sections) or {key[0] for key in keys} - set(self.header.components):
            raise CorruptBackup(f"{self.name}: the manifest's sources contradict each other")
        if metadata is None:
            return
        if metadata.manifest is not None and metadata.manifest.compressed_offset != self.manifest_offset:
            raise CorruptBackup(f"{self.name}: the manifest does not list all blocks before its own")
        self.header.check(metadata, self._end, self.name)


def _load(source: RandomAccess, metadata: BackupMetadata | None, name: str) -> tuple[IO[bytes], str, int]:
    location = metadata.manifest if metadata is not None else None
    tar = TarStream(stream(source, location.compressed_offset if location else 0, name=name), name=name)
    member = tar.advance()
    if location is None:
        while member is not None and member.path != manifest.NAME:
            member = tar.advance()
    if member is None or member.path != manifest.NAME:
        raise CorruptBackup(f"{name} has no manifest: it is no backup of ours, or it is truncated")
    if member.size > _MANIFEST_LIMIT or (location is not None and member.size != location.size):
        raise CorruptBackup(f"{name}: the manifest is not as long as it should be")
    if member.size > free_bytes(temp_directory()):
        raise NoSpace(
            f"{temp_directory()} has no room for the manifest's {member.size} bytes", hint="Set TMPDIR."
        )
    digest = hashlib.sha256()
    file = private_file()
    try:
        since_newline = 0
        for piece in tar.content():
            newline = bytes(piece).rfind(b"\n")
            since_newline = since_newline + len(piece) if newline < 0 else len(piece) - newline
            if since_newline > 4 * manifest.LINE_LIMIT:
                raise CorruptBackup(f"{name}: the manifest has an absurdly long line")
            digest.update(piece)
            file.write(piece)
        tar.finish()
        if location is not None and digest.hexdigest() != location.digest:
            raise CorruptBackup(f"{name}: the manifest is not the one that its metadata names")
    except BaseException:
        file.close()
        raise
    return file, digest.hexdigest(), member.size
