"""What was measured, as tables for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.measure import Row


@dataclass(frozen=True, slots=True)
class Table:
    """Programs that did the same work."""

    title: str
    rows: Sequence[Row]
    reading: bool = False
    """Whether what was read is told as well."""

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def lines(self) -> Iterator[str]:
        peers = [row for row in self.rows if row.is_peer]
        head = ["", "wall", "best", "CPU", "memory", "stored"]
        head += ["read"] if self.reading else []
        head += ["others"]
        head += [f"against {peer.name}" for peer in peers]
        cells = [head]
        for row in self.rows:
            others = f"{row.others:.1f}" if row.others is not None else ""
            sizes = [row.stored, row.read] if self.reading else [row.stored]
            cells.append(
                [
                    row.name,
                    f"{row.wall:.2f} s",
                    f"{row.best:.2f} s",
                    f"{row.cpu:.2f} s",
                    f"{row.rss / 1e6:.0f} MB",
                ]
                + [f"{size / 1e6:,.2f} MB" if size is not None else "" for size in sizes]
                + [others]
                + ["" if row.is_peer else _ratio(row, peer) for peer in peers]
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        yield f"  {self.title}"
        for line in cells:
            first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            yield "    " + "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()


def _ratio(row: Row, peer: Row) -> str:
    return f"{peer.wall / row.wall:.2f}x (CPU {peer.cpu / row.cpu:.2f}x)"


@dataclass(frozen=True, slots=True)
class Goal:
    """A promise about a figure."""

    text: str
    measured: str
    met: bool | None
    """None when there was nothing to compare with."""

    def line(self) -> str:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[self.met]
        return f"  goal: {self.text}: {self.measured}, {verdict}"


def speed_goal(table: Table, name: str, peer: str, factor: float = 1) -> Goal:
    """`name` takes at most 1/`factor` of the time of `peer`."""
    text = f"{table.title}: {name} at least {factor:g}x as fast as {peer}"
    mine, theirs = table.row(name), table.row(peer)
    if mine is None or theirs is None:
        return Goal(text, f"{peer} is missing", None)
    ratio = theirs.wall / mine.wall
    return Goal(text, f"{ratio:.2f}x (CPU {theirs.cpu / mine.cpu:.2f}x)", ratio >= factor)


def size_goal(table: Table, name: str, peer: str, limit: float = 1) -> Goal:
    """`name` stores at most `limit` times what `peer` does."""
    most = "no more than" if limit == 1 else f"at most {limit:g} of"
    text = f"{table.title}: {name} stores {most} {peer}"
    mine, theirs = table.row(name), table.row(peer)
    if mine is None or theirs is None or not mine.stored or not theirs.stored:
        return Goal(text, f"{peer} is missing", None)
    ratio = mine.stored / theirs.stored
    return Goal(text, f"{ratio:.3f} of it", ratio <= limit)


def share_goal(table: Table, name: str, figure: Literal["wall", "stored"], limit: float) -> Goal:
    """`name` takes at most `limit` of the time, or of the bytes, of restic; and of Borg's, except where these are
    fewer than restic's. So it is restic that decides, where there is one."""
    what = "takes at most {:g} of the time" if figure == "wall" else "stores at most {:g} of the bytes"
    text = f"{table.title}: {name} {what.format(limit)} of restic and Borg"
    mine = table.row(name)
    theirs = {row.name: getattr(row, figure) for row in table.rows if row.is_peer}
    if mine is None or not theirs:
        return Goal(text, "both are missing", None)
    shares = {peer: getattr(mine, figure) / value for peer, value in theirs.items()}
    told = [f"{share:.3f} of {peer}'s" for peer, share in shares.items()]
    if "restic" in theirs and theirs.get("borg", math.inf) < theirs["restic"]:
        told[-1] += ", which is smaller than restic's and does not count"
    return Goal(text, "; ".join(told), shares.get("restic", max(shares.values())) <= limit)


def limit_goal(text: str, value: float, limit: float, unit: str) -> Goal:
    """A figure stays below a limit."""
    return Goal(f"{text} under {limit:g} {unit}", f"{value:.3g} {unit}", value < limit)


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario."""

    title: str
    tables: Sequence[Table]
    goals: Sequence[Goal]
    checks: Sequence[str] = field(default=())
    """What was proved right, once."""
    memory_limit: int = 250_000_000
    """Bytes that no command in it may hold."""

    def print(self) -> None:
        print(f"\n{self.title}")
        for table in self.tables:
            print("\n".join(table.lines()))
        for check in self.checks:
            print(f"  checked: {check}")
        for goal in self.goals:
            print(goal.line())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
