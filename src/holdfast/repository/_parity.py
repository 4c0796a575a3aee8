"""Parity: what mends an object of which some sectors have gone bad. The format is in docs/repository-format.md.

A disk loses sectors: it gives them back altered, or not at all. The sectors of an object are dealt out in turn to
*sets*, and each set has one more sector, the XOR of all of its own. CRC-32 tells which sectors are bad; one of
each set can be worked out from the others.

CRC-32 proves nothing against somebody who writes to the storage: what was mended is believed once the object's own
check (its seals, its digest) agrees, and not before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from holdfast.durable import explained
from holdfast.errors import CorruptBackup, StorageError
from holdfast.repository._mended import SECTOR, MendedObject, Patches
from holdfast.repository._parity_storage import parity_name
from holdfast.storage.base import OpenObject, Storage
from holdfast.streams import RandomAccess

GROUP: Final = 32
"""Sectors to one parity sector."""
MAX_GROUP: Final = 1024
MAX_SETS: Final = 4096
"""Parity sectors of a stripe: 16 MiB, which bounds the memory that both ways take."""
MAX_BAD: Final = 1 << 16
"""Sectors of one object that are mended: 256 MiB, which bounds what a forged parity can have us write."""

_MAGIC = b"HFPARITY"
_HEADER = struct.Struct("<8sQI")
_CRC = struct.Struct("<I")
_HEADER_LENGTH = _HEADER.size + _CRC.size
_PIECE_SECTORS = 1024
_SECTOR_WORDS = SECTOR // 8
_U32 = np.dtype("<u4")

_Sums: TypeAlias = NDArray[np.uint32]
_Words: TypeAlias = NDArray[np.uint64]


def write_parity(storage: Storage, name: str, *, group: int = GROUP, crc: int | None = None) -> int:
    """Writes the parity of an object, in place of any that it has, and returns its size in bytes.

    Whoever calls it has checked the object, or knows the CRC-32 of all of it: parity of damage keeps the damage.
    `group` is how many sectors have one parity sector, 1 to 1,024. Takes at most some 30 MiB of memory, for objects
    of any size; up to 64 MiB with large groups. Raises FileNotFoundError; StorageError, also for another `crc`.
    """
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"a group of {group} sectors is not between 1 and {MAX_GROUP}")
    with storage.open(name) as source:
        upload = storage.create(parity_name(name), replace=True, hashed=False)
        found = 0
        try:
            header = _HEADER.pack(_MAGIC, source.size, group)
            upload.write(header + _CRC.pack(isal_zlib.crc32(header)))
            for stripe in _stripes(source.size, group):
                sums = np.empty(stripe.sectors, _U32)
                xor: _Words = np.zeros(stripe.sets * _SECTOR_WORDS, np.uint64)
                for number, count in _steps(stripe.sectors):
                    offset = (stripe.first + number) * SECTOR
                    data = _read(source, offset, min(count * SECTOR, source.size - offset), name)
                    found = isal_zlib.crc32(data, found)
                    piece = _padded(data)
                    sums[number : number + count] = _checksums(piece)
                    _add(xor, piece, number)
                parity_sums = _checksums(xor.data.cast("B"))
                tables = sums.tobytes() + parity_sums.tobytes()
                upload.write(tables + _CRC.pack(isal_zlib.crc32(tables)))
                upload.write(xor.data)
            if crc is not None and found != crc:
                raise StorageError(
                    f"{name}: what was read back is not what was written",
                    hint="Suspect the disk or the memory of this machine before you trust either again.",
                )
            upload.publish()
            return upload.size
        finally:
            upload.abort()


def mend(storage: Storage, name: str) -> MendedObject | None:
    """An object as it was when its parity was written, without writing anything; the caller closes it.

    None where parity has nothing to offer: there is none, or it finds nothing wrong. Bad sectors are those of another
    CRC-32, those that cannot be read, and those beyond the end of an object that has become shorter; of one that has
    become longer, the rest is cut off. The caller then checks what it holds as it would check the object.

    Raises FileNotFoundError when the object itself is gone; CorruptBackup when more is bad than can be mended, or the
    parity is bad too; StorageError when too much of it cannot be read.
    """
    with ExitStack() as stack:
        source = stack.enter_context(storage.open(name))
        try:
            parity = storage.open(parity_name(name))
        except FileNotFoundError:
            return None
        patches = stack.enter_context(Patches())
        with parity:
            size, group = _parse_header(parity, name)
            for stripe in _stripes(size, group):
                _mend_stripe(source, size, parity, stripe, name, patches)
        if not patches.sectors and source.size <= size:
            return None
        stack.pop_all()
        return MendedObject(source, patches, size, name)


def repair(storage: Storage, name: str, check: Callable[[RandomAccess], None]) -> int | None:
    """Writes an object anew, mended, in place of the damaged one, and returns how many sectors were bad.

    None, and nothing written, where parity has nothing to offer. `check` raises an error for content that is not what
    the object must hold. It is called before anything is replaced, and again on what then lies there. Raises what
    `mend` raises, and what `check` does.
    """
    mended = mend(storage, name)
    if mended is None:
        return None
    with mended:
        check(mended)
        upload = storage.create(name, replace=True)
        try:
            step = _PIECE_SECTORS * SECTOR
            for offset in range(0, mended.size, step):
                upload.write(mended.read_at(offset, step))
            upload.publish()
        finally:
            upload.abort()
    with storage.open(name) as written:
        check(written)
    return mended.bad_sectors


@dataclass(frozen=True, slots=True)
class Condition:
    """How an object and its parity are, compared with each other in every bit."""

    damage: str
    """What is wrong with the object; empty where nothing is, or the parity cannot tell."""
    spoilt: str
    """What is wrong with the parity."""
    mendable: bool


def examine(storage: Storage, name: str) -> Condition | None:
    """Reads all of an object and of its parity. None without parity. Raises FileNotFoundError, StorageError."""
    with storage.open(name) as source:
        try:
            parity = storage.open(parity_name(name))
        except FileNotFoundError:
            return None
        bad = spoilt = 0
        mendable = True
        with parity:
            try:
                size, group = _parse_header(parity, name)
                for stripe in _stripes(size, group):
                    sums, spare_sums = _read_tables(parity, stripe, name)
                    sectors = _Sectors(source, stripe.first * SECTOR, size, sums, name)
                    spares = _Sectors(parity, stripe.parity_offset, stripe.end, spare_sums, name)
                    lost = [one for *_, found in sectors.pieces(0, stripe.sectors) for one in found]
                    gone = [one for *_, found in spares.pieces(0, stripe.sets) for one in found]
                    bad, spoilt = bad + len(lost), spoilt + len(gone)
                    sets = {one % stripe.sets for one in lost}
                    mendable = mendable and len(sets) == len(lost) and sets.isdisjoint(gone)
            except (CorruptBackup, StorageError) as error:
                return Condition("", str(error), False)
        damage = _bad_sectors(bad)
        if not bad and source.size != size:
            damage = f"{source.size} bytes instead of {size}"
        return Condition(damage, _bad_sectors(spoilt), mendable and bad <= MAX_BAD)


def verify_parity(storage: Storage, name: str) -> None:
    """Compares an object that has parity with that, in every bit, and the parity with itself.

    One that is not there is no matter of this. Raises CorruptBackup for damage to either, StorageError.
    """
    try:
        condition = examine(storage, name)
    except FileNotFoundError:
        return
    if condition is None:
        return
    if condition.damage and not condition.mendable:
        raise CorruptBackup(f"{name} is damaged: {condition.damage}, more than its parity mends")
    if condition.damage:
        raise CorruptBackup(f"{name} is damaged: {condition.damage}", hint=_MENDED)
    if condition.spoilt:
        raise CorruptBackup(f"{parity_name(name)} is damaged: {condition.spoilt}", hint=_REPAIRED)


_MENDED = "`holdfast repair` mends it from its parity; until then it is read mended."
_REPAIRED = "`holdfast repair` makes it anew, once it has proved the object that it mends."


@dataclass(frozen=True, slots=True)
class _Stripe:
    """A stretch of an object with parity of its own, and where that lies."""

    first: int
    """The number of its first sector in the object."""
    sectors: int
    sets: int
    offset: int
    """Where its checksums begin in the parity object."""

    @property
    def parity_offset(self) -> int:
        return self.offset + (self.sectors + self.sets + 1) * _CRC.size

    @property
    def end(self) -> int:
        return self.parity_offset + self.sets * SECTOR


def _parity_size(size: int, group: int) -> int:
    """How long the parity of an object is, in bytes."""
    sectors, count = _count(size, group)
    if not count:
        return _HEADER_LENGTH
    short, longer = divmod(sectors, count)
    sets = -(-short // group) * (count - longer) + -(-(short + 1) // group) * longer
    return _HEADER_LENGTH + (sectors + sets + count) * _CRC.size + sets * SECTOR


def _count(size: int, group: int) -> tuple[int, int]:
    """How many sectors an object has, and how many stripes."""
    sectors = -(-size // SECTOR)
    return sectors, -(-sectors // (group * MAX_SETS))


def _stripes(size: int, group: int) -> Iterator[_Stripe]:
    """The stripes of an object, as equal as can be: a short one could lose little."""
    sectors, count = _count(size, group)
    offset = _HEADER_LENGTH
    for number in range(count):
        first = number * sectors // count
        length = (number + 1) * sectors // count - first
        stripe = _Stripe(first, length, -(-length // group), offset)
        yield stripe
        offset = stripe.end


def _parse_header(parity: OpenObject, name: str) -> tuple[int, int]:
    """The size of the object and of its groups, which the parity is exactly long enough for."""
    header = _read(parity, 0, min(_HEADER_LENGTH, parity.size), parity_name(name))
    if len(header) != _HEADER_LENGTH or not header.startswith(_MAGIC):
        raise CorruptBackup(f"{parity_name(name)} is no parity, or has lost its beginning")
    _, size, group = _HEADER.unpack_from(header)
    if header[_HEADER.size :] != _CRC.pack(isal_zlib.crc32(header[: _HEADER.size])):
        raise _damaged_parity(name)
    if not 1 <= group <= MAX_GROUP or parity.size != _parity_size(size, group):
        raise _damaged_parity(name)
    return size, group


def _read_tables(parity: OpenObject, stripe: _Stripe, name: str) -> tuple[_Sums, _Sums]:
    """The checksums of a stripe's sectors, and of its parity sectors."""
    length = (stripe.sectors + stripe.sets) * _CRC.size
    tables = _read(parity, stripe.offset, length + _CRC.size, parity_name(name))
    if tables[length:] != _CRC.pack(isal_zlib.crc32(tables[:length])):
        raise _damaged_parity(name)
    return (
        np.frombuffer(tables, _U32, stripe.sectors),
        np.frombuffer(tables, _U32, stripe.sets, stripe.sectors * _CRC.size),
    )


def _mend_stripe(
    source: OpenObject, size: int, parity: OpenObject, stripe: _Stripe, name: str, patches: Patches
) -> None:
    """Finds the bad sectors of a stripe and adds what they held."""
    sums, parity_sums = _read_tables(parity, stripe, name)
    xor: _Words = np.zeros(stripe.sets * _SECTOR_WORDS, np.uint64)
    sectors = _Sectors(source, stripe.first * SECTOR, size, sums, name)
    bad: list[int] = []
    for number, piece, found in sectors.pieces(0, stripe.sectors):
        bad += found
        if len(bad) > stripe.sets:
            raise sectors.refusal(f"more than {stripe.sets} sectors")
        _add(xor, piece, number)
    if not bad:
        return
    if len(patches.sectors) + len(bad) > MAX_BAD:
        raise sectors.refusal(f"more than {MAX_BAD} sectors")
    wanted = {number % stripe.sets for number in bad}
    if len(wanted) < len(bad):
        raise sectors.refusal(f"{len(bad)} sectors, two of which share their parity")

    spare = _Sectors(parity, stripe.parity_offset, stripe.end, parity_sums, parity_name(name))
    for number, piece, found in spare.pieces(min(wanted), max(wanted) + 1):
        if wanted.intersection(found):
            raise spare.refusal(f"sectors that {name} needs")
        _add(xor, piece, number)
    for number in bad:
        begin = number % stripe.sets * _SECTOR_WORDS
        content = xor[begin : begin + _SECTOR_WORDS].tobytes()
        if isal_zlib.crc32(content) != sums[number]:
            raise _damaged_parity(name)
        patches.add(stripe.first + number, content)


class _Sectors:
    """Sectors whose checksums are known, of an object that may be damaged."""

    def __init__(self, source: OpenObject, offset: int, end: int, sums: _Sums, name: str) -> None:
        """`offset`: where the first one begins; `end`: where the object ends, or ended."""
        self.error: StorageError | None = None
        """Why a sector could not be read."""
        self._source = source
        self._offset = offset
        self._end = end
        self._sums = sums
        self._name = name

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, bytearray, list[int]]]:
        """The sectors `start` to `stop`, some at a time: the number of the first, all their bytes with zeros in place
        of what is bad, and the numbers of the bad ones."""
        for step, count in _steps(stop - start):
            number = start + step
            piece, missing = self._salvage(number, count)
            wrong = np.flatnonzero(_checksums(piece) != self._sums[number : number + count])
            bad = sorted(missing.union(wrong.tolist()))
            for one in bad:
                piece[one * SECTOR : (one + 1) * SECTOR] = bytes(SECTOR)
            yield number, piece, [number + one for one in bad]

    def refusal(self, what: str) -> StorageError | CorruptBackup:
        """The error for damage that cannot be mended."""
        if self.error is not None:
            return StorageError(f"{self._name} has lost {what}, and not all can be read: {self.error}")
        return CorruptBackup(f"{self._name} has lost {what}: that cannot be mended")

    def _salvage(self, number: int, count: int) -> tuple[bytearray, set[int]]:
        """What can be read of some sectors, with zeros for the rest; and which those are, counted from `number`."""
        begin = self._offset + number * SECTOR
        end = min(begin + count * SECTOR, self._end)
        if self._source.size < end:
            # A sector of which the end is gone is bad, even where the end was zeros.
            there = max(self._source.size - begin, 0) // SECTOR
            end = begin + there * SECTOR
        else:
            there = count
        missing = set(range(there, count))
        piece = bytearray(count * SECTOR)
        try:
            piece[: end - begin] = _read(self._source, begin, end - begin, self._name)
        except StorageError:
            for one in range(there):
                offset = begin + one * SECTOR
                length = min(SECTOR, end - offset)
                try:
                    data = _read(self._source, offset, length, self._name)
                except StorageError as error:
                    self.error = error
                    missing.add(one)
                    continue
                piece[offset - begin : offset - begin + length] = data
        return piece, missing


def _steps(sectors: int) -> Iterator[tuple[int, int]]:
    """Pieces of sectors: the number of the first, and how many."""
    for number in range(0, sectors, _PIECE_SECTORS):
        yield number, min(_PIECE_SECTORS, sectors - number)


def _read(source: OpenObject, offset: int, length: int, name: str) -> bytes:
    with explained(f"cannot read {name}"):
        data = source.read_at(offset, length) if length else b""
    if len(data) != length:
        raise StorageError(f"{name} gave {len(data)} of {length} bytes at {offset}")
    return data


def _padded(data: bytes) -> bytes:
    """The last sector of an object counts as if zeros filled it up."""
    return data if len(data) % SECTOR == 0 else data + bytes(-len(data) % SECTOR)


def _checksums(piece: bytes | bytearray | memoryview) -> _Sums:
    view = memoryview(piece)
    crc32 = isal_zlib.crc32
    return np.array([crc32(view[at : at + SECTOR]) for at in range(0, len(view), SECTOR)], _U32)


def _add(xor: _Words, piece: bytes | bytearray, number: int) -> None:
    """XORs sectors, of which the first has this number in its stripe, into those of their sets."""
    words: _Words = np.frombuffer(piece, np.uint64)
    done = 0
    while done < len(words):
        begin = (number * _SECTOR_WORDS + done) % len(xor)
        step = min(len(words) - done, len(xor) - begin)
        xor[begin : begin + step] ^= words[done : done + step]
        done += step


def _bad_sectors(count: int) -> str:
    return f"{count} bad {'sector' if count == 1 else 'sectors'}" if count else ""


def _damaged_parity(name: str) -> CorruptBackup:
    return CorruptBackup(f"{name} is damaged, and so is its parity")
