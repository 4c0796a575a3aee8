from __future__ import annotations

import io
import itertools
import random
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.crypto import (
    Identity,
    OpeningReader,
    PassphraseIdentity,
    SealingWriter,
    X25519Identity,
    header_length,
    is_age_file,
    rewrap,
)
from holdfast.errors import ConfigError, CorruptBackup, HostileBackup, KeyMissing, KeyWrong, StorageError
from holdfast.streams import RandomAccess

Source = Callable[[bytes], RandomAccess]
Seal = Callable[..., bytes]
Unseal = Callable[[bytes, Sequence[Identity]], bytes]

CHUNK = 65536
IDENTITY = X25519Identity(b"\x07" * 32)
OTHER = X25519Identity(b"\x08" * 32)
PASSPHRASE = PassphraseIdentity("correct horse")

SIZES = st.one_of(
    st.integers(0, 300),
    st.builds(lambda chunks, off: max(0, chunks * CHUNK + off), st.integers(0, 4), st.integers(-2, 2)),
)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@given(size=SIZES, cuts=st.lists(st.integers(0, 4 * CHUNK + 2), max_size=6), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_in_any_pieces_opens_again(
    source: Source, size: int, cuts: list[int], seed: int
) -> None:
    plaintext = content(size)
    identity: Identity = PASSPHRASE if seed == 0 else IDENTITY
    out = io.BytesIO()
    with SealingWriter(out, [identity.recipient], work_factor=1) as writer:
        edges = [0, *sorted(min(cut, size) for cut in cuts), size]
        for start, end in itertools.pairwise(edges):
            assert writer.write(memoryview(plaintext)[start:end]) == end - start
    reader = OpeningReader(source(out.getvalue()), [identity])
    assert reader.size == size
    assert reader.read_at(0, size) == plaintext


@given(
    size=SIZES, reads=st.lists(st.tuples(st.integers(0, 5 * CHUNK), st.integers(0, 3 * CHUNK)), max_size=8)
)
@settings(max_examples=60, deadline=None)
def test_reading_anywhere_is_slicing(
    source: Source, seal: Seal, size: int, reads: list[tuple[int, int]]
) -> None:
    plaintext = content(size)
    reader = OpeningReader(source(seal(plaintext, IDENTITY.recipient)), [IDENTITY])
    for offset, length in [*reads, (size, 1), (max(0, size - 1), 5)]:
        assert reader.read_at(offset, length) == plaintext[offset : offset + length]


DAMAGED_SIZES = [0, 1, 100, CHUNK, CHUNK + 1, 2 * CHUNK]
REFUSALS = (CorruptBackup, KeyWrong)


@given(data=st.data(), size=st.sampled_from(DAMAGED_SIZES), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_no_flipped_byte_goes_unnoticed(
    seal: Seal, unseal: Unseal, data: st.DataObject, size: int, flip: int
) -> None:
    sealed = bytearray(seal(content(size), IDENTITY.recipient))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= flip
    with pytest.raises(REFUSALS):
        unseal(bytes(sealed), [IDENTITY])


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_no_flipped_byte_of_a_small_file_goes_unnoticed(seal: Seal, unseal: Unseal, flip: int) -> None:
    sealed = seal(b"weights", IDENTITY.recipient)
    for place, byte in enumerate(sealed):
        with pytest.raises(REFUSALS):
            unseal(sealed[:place] + bytes([byte ^ flip]) + sealed[place + 1 :], [IDENTITY])


@given(data=st.data(), size=st.sampled_from(DAMAGED_SIZES))
@settings(max_examples=100, deadline=None)
def test_no_truncated_file_opens(source: Source, seal: Seal, data: st.DataObject, size: int) -> None:
    sealed = seal(content(size), IDENTITY.recipient)
    payload = header_length(source(sealed)) + 16
    boundaries = st.integers(0, size // CHUNK).map(lambda chunks: payload + chunks * (CHUNK + 16))
    length = data.draw(
        st.one_of(boundaries, st.integers(0, len(sealed) - 1)).filter(lambda n: n < len(sealed))
    )
    with pytest.raises(CorruptBackup):
        OpeningReader(source(sealed[:length]), [IDENTITY])


def test_chunks_that_change_places_are_noticed(seal: Seal, unseal: Unseal, source: Source) -> None:
    sealed = seal(bytes(3 * CHUNK), IDENTITY.recipient)
    first = header_length(source(sealed)) + 16
    second = first + CHUNK + 16
    third = second + CHUNK + 16
    with pytest.raises(CorruptBackup, match=r"chunk 1 of 3"):
        unseal(sealed[:first] + sealed[second:third] + sealed[first:second] + sealed[third:], [IDENTITY])
    with pytest.raises(CorruptBackup, match=r"chunk 2 of 2"):
        unseal(sealed[:second] + sealed[third:] + b"", [IDENTITY])


def test_a_damaged_chunk_keeps_back_itself_and_no_other(seal: Seal, source: Source) -> None:
    plaintext = content(3 * CHUNK)
    sealed = bytearray(seal(plaintext, IDENTITY.recipient))
    sealed[-(CHUNK + 16) - 1] ^= 1  # the end of the second chunk of three
    reader = OpeningReader(source(bytes(sealed)), [IDENTITY], name="full_20240101_020000")
    assert reader.read_at(0, CHUNK) == plaintext[:CHUNK]
    assert reader.read_at(2 * CHUNK, CHUNK) == plaintext[2 * CHUNK :]
    with pytest.raises(CorruptBackup, match=r"full_20240101_020000 is damaged .*chunk 2 of 3"):
        reader.read_at(CHUNK - 1, 2)


def test_a_source_that_shrinks_while_it_is_read_is_noticed(seal: Seal) -> None:
    class Shrinking:
        def __init__(self, sealed: bytes) -> None:
            self.sealed = sealed
            self.size = len(sealed)

        def read_at(self, offset: int, length: int) -> bytes:
            return self.sealed[offset : offset + length]

    shrinking = Shrinking(seal(content(3 * CHUNK), IDENTITY.recipient))
    reader = OpeningReader(shrinking, [IDENTITY])
    shrinking.sealed = shrinking.sealed[: 2 * CHUNK]
    with pytest.raises(CorruptBackup, match="became shorter"):
        reader.read_at(0, 2 * CHUNK)


def test_negative_numbers_are_no_slices_from_the_end(seal: Seal, source: Source) -> None:
    reader = OpeningReader(source(seal(b"abc", IDENTITY.recipient)), [IDENTITY])
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            reader.read_at(offset, length)


def test_several_threads_read_at_once(seal: Seal, source: Source) -> None:
    plaintext = content(20 * CHUNK + 5)
    reader = OpeningReader(source(seal(plaintext, IDENTITY.recipient)), [IDENTITY])
    wrong: list[int] = []

    def read(seed: int) -> None:
        places = random.Random(seed)
        for _ in range(40):
            offset, length = places.randrange(len(plaintext)), places.randrange(3 * CHUNK)
            if reader.read_at(offset, length) != plaintext[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_recipient_can_read_and_nobody_else(seal: Seal, unseal: Unseal) -> None:
    sealed = seal(b"weights", IDENTITY.recipient, OTHER.recipient)
    assert unseal(sealed, [IDENTITY]) == b"weights"
    assert unseal(sealed, [PASSPHRASE, OTHER]) == b"weights"
    with pytest.raises(KeyWrong, match="None of the configured keys") as caught:
        unseal(sealed, [X25519Identity.generate(), PASSPHRASE])
    assert "ENCRYPTION_KEY" in caught.value.hint


def test_a_passphrase_of_the_usual_cost_opens_again_and_a_wrong_one_does_not(
    seal: Seal, unseal: Unseal
) -> None:
    usual = seal(b"weights", PASSPHRASE.recipient, work_factor=18)
    assert usual.split(b"\n")[1].endswith(b" 18")
    assert unseal(usual, [PASSPHRASE]) == b"weights"
    cheap = seal(b"weights", PASSPHRASE.recipient)
    with pytest.raises(KeyWrong) as caught:
        unseal(cheap, [PassphraseIdentity("battery staple"), IDENTITY])
    assert "battery" not in str(caught.value)


def test_reading_with_recipients_alone_says_that_the_identity_is_needed(seal: Seal, unseal: Unseal) -> None:
    with pytest.raises(KeyMissing) as caught:
        unseal(seal(b"weights", IDENTITY.recipient), [])
    assert "AGE-SECRET-KEY-1" in caught.value.hint


def test_writing_needs_a_recipient_and_a_passphrase_stands_alone() -> None:
    out = io.BytesIO()
    with pytest.raises(KeyMissing, match="no key to encrypt with"):
        SealingWriter(out, [])
    with pytest.raises(ConfigError, match="cannot be combined"):
        SealingWriter(out, [IDENTITY.recipient, PASSPHRASE.recipient])
    for work_factor in (0, 21):
        with pytest.raises(ConfigError, match="work factor"):
            SealingWriter(out, [PASSPHRASE.recipient], work_factor)
    assert out.getvalue() == b""


def test_two_files_of_the_same_plaintext_have_nothing_in_common(seal: Seal, source: Source) -> None:
    first, second = (seal(bytes(100), IDENTITY.recipient) for _ in range(2))
    assert len(first) == len(second)
    assert first[header_length(source(first)) :] != second[header_length(source(second)) :]
    assert first.split(b"\n")[1] != second.split(b"\n")[1]


def test_an_exception_in_the_block_leaves_a_file_that_does_not_open(source: Source) -> None:
    out = io.BytesIO()
    writer = SealingWriter(out, [IDENTITY.recipient])

    def write_and_fail() -> None:
        with writer:
            writer.write(content(2 * CHUNK))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    writer.close()
    with pytest.raises(CorruptBackup):
        OpeningReader(source(out.getvalue()), [IDENTITY])


def test_a_write_that_failed_cannot_be_closed_over(source: Source) -> None:
    class Full(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]  # only bytes are written here
            if self.tell() > CHUNK:
                raise OSError("full")
            return super().write(data)

    out = Full()
    writer = SealingWriter(out, [IDENTITY.recipient])
    with pytest.raises(OSError, match="full"):
        writer.write(content(4 * CHUNK))
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")
    with pytest.raises(CorruptBackup):
        OpeningReader(source(out.getvalue()), [IDENTITY])


def test_closing_twice_writes_one_end_and_leaves_the_output_open(unseal: Unseal) -> None:
    out = io.BytesIO()
    writer = SealingWriter(out, [IDENTITY.recipient])
    writer.write(b"weights")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")
    assert unseal(out.getvalue(), [IDENTITY]) == b"weights"


def test_an_output_that_takes_little_at_a_time_gets_everything(unseal: Unseal) -> None:
    class Slow(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]  # only bytes are written here
            return super().write(data[:5000])

    class Stuck(io.BytesIO):
        def write(self, data: object, /) -> int:
            return 0

    out, plaintext = Slow(), content(2 * CHUNK + 9)
    with SealingWriter(out, [IDENTITY.recipient]) as writer:
        writer.write(plaintext)
    assert unseal(out.getvalue(), [IDENTITY]) == plaintext
    with pytest.raises(StorageError, match="takes no more"):
        SealingWriter(Stuck(), [IDENTITY.recipient])


@pytest.mark.parametrize("size", [0, CHUNK, 20 * CHUNK + 1])
def test_rewrapping_changes_who_can_read_and_not_the_payload(
    seal: Seal, unseal: Unseal, source: Source, size: int
) -> None:
    plaintext = content(size)
    old = seal(plaintext, IDENTITY.recipient)
    out = io.BytesIO()
    rewrap(source(old), out, [OTHER, IDENTITY], [OTHER.recipient])
    new = out.getvalue()
    assert old[header_length(source(old)) :] == new[header_length(source(new)) :]
    assert unseal(new, [OTHER]) == plaintext
    with pytest.raises(KeyWrong):
        unseal(new, [IDENTITY])


def test_rewrapping_to_a_passphrase_and_back(seal: Seal, unseal: Unseal, source: Source) -> None:
    locked, freed = io.BytesIO(), io.BytesIO()
    rewrap(source(seal(b"weights", IDENTITY.recipient)), locked, [IDENTITY], [PASSPHRASE.recipient], 1)
    assert unseal(locked.getvalue(), [PASSPHRASE]) == b"weights"
    rewrap(source(locked.getvalue()), freed, [PASSPHRASE], [IDENTITY.recipient])
    assert unseal(freed.getvalue(), [IDENTITY]) == b"weights"


def test_rewrapping_does_not_pass_on_damage(seal: Seal, source: Source) -> None:
    sealed = bytearray(seal(content(3 * CHUNK), IDENTITY.recipient))
    sealed[CHUNK] ^= 1
    with pytest.raises(CorruptBackup, match="chunk 1 of 3"):
        rewrap(source(bytes(sealed)), io.BytesIO(), [IDENTITY], [OTHER.recipient])


def test_the_header_is_bounded(seal: Seal, source: Source) -> None:
    lines = seal(b"", IDENTITY.recipient).split(b"\n", 3)
    stanza = lines[1] + b"\n" + lines[2] + b"\n"
    many = lines[0] + b"\n" + stanza * 1001 + lines[3]
    with pytest.raises(HostileBackup, match="more than 1000 recipients"):
        OpeningReader(source(many), [IDENTITY])
    endless = lines[0] + b"\n-> grease\n" + (b"A" * 64 + b"\n") * 20_000 + b"\n" + stanza + lines[3]
    with pytest.raises(CorruptBackup, match="first MiB"):
        OpeningReader(source(endless), [IDENTITY])
    with pytest.raises(CorruptBackup, match="first MiB"):
        header_length(source(endless))


def test_a_thousand_recipients_are_read(source: Source, seal: Seal, unseal: Unseal) -> None:
    crowd = [X25519Identity.generate().recipient] * 999
    sealed = seal(b"weights", *crowd, IDENTITY.recipient)
    assert header_length(source(sealed)) > 64 << 10
    assert unseal(sealed, [IDENTITY]) == b"weights"


def test_the_cost_of_a_passphrase_is_bounded_before_it_is_paid(seal: Seal, unseal: Unseal) -> None:
    sealed = seal(b"", PASSPHRASE.recipient)
    for cost in (b"21", b"30", b"9" * 5000):
        with pytest.raises(HostileBackup, match=r"2\*\*20"):
            unseal(sealed.replace(b" 1\n", b" " + cost + b"\n", 1), [PASSPHRASE])


def test_an_age_file_is_told_by_its_first_bytes(seal: Seal) -> None:
    assert is_age_file(seal(b"", IDENTITY.recipient)[:19])
    assert is_age_file(b"age-encryption.org/v2\n")
    for other in (b"", b"age-encryption.org", b"\x1f\x8b\x08\x00", b"-----BEGIN AGE ENCRYPTED FILE-----"):
        assert not is_age_file(other)
