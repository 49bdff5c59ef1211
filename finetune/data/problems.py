"""What is wrong with rows: a load stops at the first problem, `finetune data check` counts them all."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.errors import DataError

SHOWN = 3  # messages kept of each kind: enough to find the pattern, few enough for a million bad rows


@dataclass
class Found:
    """One kind of problem: how often, and its first messages."""

    count: int = 0
    first: list[DataError] = field(default_factory=list)


class Problems:
    """Raises the first problem (`strict`), or counts all of them so that they can be shown together."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.found: dict[str, Found] = {}

    def add(self, kind: str, problem: str, fix: str) -> None:
        """Note one problem; the caller then leaves the row out.

        Raises:
            DataError: when strict.
        """
        self.add_error(kind, DataError(problem, fix))

    def add_error(self, kind: str, error: DataError) -> None:
        """The same for an error that exists already."""
        if self.strict:
            raise error
        found = self.found.setdefault(kind, Found())
        found.count += 1
        if len(found.first) < SHOWN:
            found.first.append(error)

    def count(self, kind: str) -> int:
        """How many problems of this kind were noted."""
        return self.found[kind].count if kind in self.found else 0
