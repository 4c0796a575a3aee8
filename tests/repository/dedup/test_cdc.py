from __future__ import annotations

import random

from repository.dedup.cutting import cuts, new_bytes
from repository.dedup.models import noise


def log(lines: int) -> list[bytes]:
    chance = random.Random(4)
    return [b'{"n": %d, "id": "%016x"}\n' % (n, chance.getrandbits(64)) for n in range(lines)]


def test_an_appended_log_keeps_its_chunks() -> None:
    lines = log(200_000)
    before, after = cuts(b"".join(lines[:190_000])), cuts(b"".join(lines))
    appended = sum(map(len, lines[190_000:]))
    assert appended <= new_bytes(before, after) < appended + 2 * 256 * 1024


def test_inserted_lines_change_the_chunks_around_them() -> None:
    lines = log(200_000)
    before = cuts(b"".join(lines))
    for place in (0, 50_000, 150_000):
        after = cuts(b"".join([*lines[:place], b"inserted\n", *lines[place:]]))
        assert new_bytes(before, after) <= 2 * 256 * 1024


def test_another_key_cuts_elsewhere() -> None:
    content = noise(3_000_000)
    ends = [
        {sum(len(chunk.data) for chunk in made[: n + 1]) for n in range(len(made) - 1)}
        for made in (cuts(content), cuts(content, key=b"j" * 32))
    ]
    assert len(ends[0]) > 20
    assert not ends[0] & ends[1]
