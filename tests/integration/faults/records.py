"""What a harness found: counts by outcome and every failing case, written as it goes, so that it can be resumed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.files import write_json
from finetune.hardware import describe
from finetune.record import commit, versions

SAVED_EVERY_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `failure` says what should not have happened, and is empty when all is well."""

    kind: str
    failure: str = ""


class Records:
    """One JSON file: a part of the harness under each key."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def forget(self, parts: Iterable[str]) -> None:
        """Run these parts anew."""
        for part in parts:
            self.content.pop(part, None)

    def table(self) -> str:
        """A line a part, and the failing cases."""
        lines = []
        for part, entry in self.content.items():
            outcomes = ", ".join(f"{count} {kind}" for kind, count in entry["outcomes"].items())
            lines.append(f"{part}: {entry['done']} of {entry['total']} in {entry['seconds']:.0f} s: {outcomes}")
            lines += [f"  case {failure['case']}: {failure['what']}" for failure in entry["failures"]]
        return "\n".join(lines)

    def run(self, part: str, total: int, case: Callable[[int], Outcome], counted: str = "cases") -> dict[str, Any]:
        """Run case 0 to `total` - 1 of a part; those that the record has are not run again.

        A case is a function of the seed and its number alone.
        """
        entry = self.content.get(part)
        if entry is None or entry["seed"] != self.seed:
            entry = {"seed": self.seed, "done": 0, "seconds": 0.0, "outcomes": {}, "failures": [], "unit": counted}
            self.content[part] = entry
        entry |= {"total": total, "commit": commit(), "versions": versions(), "hardware": describe(1, 1)}
        began = saved = time.monotonic()
        before = entry["seconds"]
        try:
            while entry["done"] < total:
                number = entry["done"]
                try:
                    outcome = case(number)
                except subprocess.TimeoutExpired as error:
                    outcome = Outcome("hang", f"no end within {error.timeout:.0f} s: {error.cmd}")
                kind = "FAILED" if outcome.failure else outcome.kind
                entry["outcomes"][kind] = entry["outcomes"].get(kind, 0) + 1
                if outcome.failure:
                    entry["failures"].append({"case": number, "kind": outcome.kind, "what": outcome.failure[:1500]})
                entry["done"] += 1
                entry["seconds"] = round(before + time.monotonic() - began, 1)
                if time.monotonic() - saved > SAVED_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        return entry

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)
