"""The contract's own words: its samples and tables, by the heading that they stand under.

``contract.markdown`` is the contract, unchanged: it does not end in ``.md``, because there formatters format samples.
The tests run what is printed there, so that it stays true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TEXT = Path(__file__).with_name("contract.markdown").read_text(encoding="utf-8")

FULL_ID = "full_20240101_020000"
"""The backup that the samples speak of."""

_FENCE = re.compile(r"```(\w*)")
_HEADING = re.compile(r"#{1,4} (?:\d+\. )?(.+)")


class Sample(NamedTuple):
    """What stands in one fence."""

    heading: str
    language: str
    text: str


def _read() -> Iterator[Sample]:
    heading, language, lines = "", None, list[str]()
    for line in TEXT.splitlines():
        if fence := _FENCE.match(line):
            if language is None:
                language, lines = fence[1], []
            else:
                yield Sample(heading, language, "\n".join(lines) + "\n")
                language = None
        elif language is not None:
            lines.append(line)
        elif title := _HEADING.fullmatch(line):
            heading = title[1]


SAMPLES = list(_read())


def sample(heading: str, language: str, number: int = 0) -> str:
    """The text of the `number`-th sample of a language under a heading."""
    return [found.text for found in SAMPLES if (found.heading, found.language) == (heading, language)][number]


def commands(heading: str, number: int = 0) -> list[str]:
    """The commands of a shell sample, without its comments."""
    lines = sample(heading, "bash", number).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its head; code marks are taken off."""
    section = TEXT.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]
