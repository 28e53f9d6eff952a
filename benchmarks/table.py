"""Figures of two programs beside each other, and the table that they make."""

import os
import platform
from dataclasses import dataclass
from statistics import median
from typing import Optional, Sequence


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        unit: of the values.
        ours: one value for each round.
        reference: the same of what ours is compared with; empty where there is nothing.
        note: instead of the reference, where it has no value.
        target: what the ratio, ours to the reference, should be; 0 for none.
        higher_is_better: whether the target is a lower bound.
    """

    name: str
    unit: str
    ours: Sequence[float]
    reference: Sequence[float] = ()
    note: str = ""
    target: float = 0.0
    higher_is_better: bool = False

    @property
    def ratio(self) -> Optional[float]:
        """Return ours to the reference, of the medians."""
        if not self.ours or not self.reference or not median(self.reference):
            return None
        return median(self.ours) / median(self.reference)

    @property
    def met(self) -> Optional[bool]:
        """Return whether the target is met, where there is one."""
        if self.ratio is None or not self.target:
            return None
        return self.ratio >= self.target if self.higher_is_better else self.ratio <= self.target


def table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    head = "| figure | unit | ours | reference | ratio | target |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(line, rows)])


def line(row: Row) -> str:
    """Return a line of the table: median (minimum to maximum), and the ratio of the medians."""

    def spread(values: Sequence[float]) -> str:
        if not values:
            return ""
        return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"

    sign = ">=" if row.higher_is_better else "<="
    told = {None: "", True: ", met", False: ", **missed**"}[row.met]
    target = f"{sign} {row.target:g}{told}" if row.target else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    cells = (row.name, row.unit, spread(row.ours), spread(row.reference) or row.note, ratio, target)
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Name the machine and the Python that figures were taken with."""
    cpus = len(os.sched_getaffinity(0))
    return f"{cpus} CPUs, {platform.platform()}; CPython {platform.python_version()}"
