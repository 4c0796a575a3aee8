"""Bech32, the spelling of age keys: BIP-173 without its limit on length, as age-encryption.org/v1 asks.

Errors say what is wrong and never repeat the text, which may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6


def encode(prefix: str, data: bytes) -> str:
    """Spell ``data`` under ``prefix``, in the case of the prefix."""
    values = list(_regroup(data, 8, 5, pad=True))
    residue = _polymod([*_expand(prefix.lower()), *values, *[0] * _CHECKSUM_LENGTH]) ^ 1
    checksum = [residue >> 5 * (_CHECKSUM_LENGTH - 1 - place) & 31 for place in range(_CHECKSUM_LENGTH)]
    text = prefix.lower() + "1" + "".join(_ALPHABET[value] for value in values + checksum)
    return text.upper() if prefix.isupper() else text


def decode(text: str) -> tuple[str, bytes]:
    """Return the prefix, in the case in which it is written, and the data.

    Raises ``ValueError`` when the text mixes cases, has a foreign character, or fails its checksum.
    """
    if not text.isascii():
        raise ValueError("it has a character that no key has")
    if text not in (text.lower(), text.upper()):
        raise ValueError("it mixes upper and lower case")
    prefix, separator, tail = text.rpartition("1")
    if not separator or not prefix or len(tail) < _CHECKSUM_LENGTH:
        raise ValueError("it is too short")
    try:
        values = [_VALUES[character] for character in tail.lower()]
    except KeyError:
        # The exception's own text would show a character of the key.
        raise ValueError("it has a character that no key has") from None
    if _polymod([*_expand(prefix.lower()), *values]) != 1:
        raise ValueError("its checksum is wrong")
    return prefix, bytes(_regroup(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    codes = [ord(character) for character in prefix]
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _polymod(values: Iterable[int]) -> int:
    residue = 1
    for value in values:
        top = residue >> 25
        residue = (residue & 0x1FFFFFF) << 5 ^ value
        for place, term in enumerate(_GENERATOR):
            if top >> place & 1:
                residue ^= term
    return residue


def _regroup(values: Iterable[int], width: int, new_width: int, *, pad: bool) -> Iterator[int]:
    """Cut a run of ``width``-bit numbers into ``new_width``-bit ones, the most significant bit first."""
    pending = bits = 0
    for value in values:
        pending = pending << width | value
        bits += width
        while bits >= new_width:
            bits -= new_width
            yield pending >> bits
            pending &= (1 << bits) - 1
    if pad and bits:
        yield pending << (new_width - bits)
    elif not pad and (bits >= width or pending):
        raise ValueError("its last character carries stray bits")
