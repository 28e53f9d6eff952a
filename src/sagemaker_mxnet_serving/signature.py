"""What a model takes."""

from dataclasses import dataclass
from typing import Any, Optional, Tuple


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: its name in the graph.
        dtype: its NumPy type.
        row: the shape of one row: all dimensions after the first; None where it is unknown.
        rows: its first dimension, where that is fixed; None where it counts the rows of a batch.
    """

    name: str
    dtype: Any
    row: Optional[Tuple[int, ...]] = None
    rows: Optional[int] = None

    @property
    def expected(self) -> str:
        """Its shape in words, for messages."""
        if self.row is None:
            return "the shape that the model takes, rows first"
        first = "rows" if self.rows is None else str(self.rows)
        return f"shape ({', '.join([first, *map(str, self.row)])})"
