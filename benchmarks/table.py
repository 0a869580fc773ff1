"""The table that is printed."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Row:
    """A line of the table: the work, what it took, and what was aimed at."""

    work: str
    reference: str
    project: str
    ratio: str
    memory: str
    target: str
    met: bool | None = None


def as_markdown(rows: Iterable[Row]) -> str:
    """Return the table as Markdown."""
    names = ["work", "reference's way", "project", "ratio", "peak memory", "target", "met"]
    assert len(names) == len(fields(Row))
    lines = [names, ["---"] * len(names)]
    for row in rows:
        *texts, met = astuple(row)
        lines.append([*texts, {True: "yes", False: "no", None: ""}[met]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def megabytes(value: float) -> str:
    return f"{value:,.0f} MB"
