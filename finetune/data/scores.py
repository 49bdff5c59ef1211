"""Reads labels that are measurements (a similarity, a rating), for regression: finite numbers and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from finetune.data.problems import Problems


class Scores:
    """Values of the label column as numbers."""

    def __init__(self, column: str, problems: Problems) -> None:
        self.column = column
        self.problems = problems
        self.low, self.high = math.inf, -math.inf

    def read(self, value: Any, path: Path, unit: str, line: int) -> float | None:
        """The value as a finite number, or None when a problem was noted."""
        number = math.nan
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
                number = math.nan
        if not math.isfinite(number):
            self.problems.add(
                "labels that are no finite number",
                f"{path}, {unit} {line}: the label {str(value)[:40]!r} in {self.column!r} is not a finite number.",
                "Mend or delete the row; for classes leave out objective.kind=regression.",
            )
            return None
        self.low, self.high = min(self.low, number), max(self.high, number)
        return number

    def finish(self, where: str) -> str:
        """A note with the range of all values; one value alone is a problem."""
        if not self.low < self.high:
            self.problems.add(
                "one value only",
                f"{where}: column {self.column!r} holds the value {self.low:g} only; there is nothing to predict."
                if self.low <= self.high
                else f"{where}: column {self.column!r} holds no number.",
                "Name another column: --set data.label=COLUMN",
            )
        return f"labels are numbers from {self.low:g} to {self.high:g}"
