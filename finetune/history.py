"""history.jsonl: one line an update and one an evaluation, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from finetune.files import write_atomically


class History:
    """Appends to a run's history.jsonl; a process other than the main one gets `path=None` and writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            # An overflow under fp16 has no finite gradient norm, and JSON has no infinity.
            finite = {key: value if _fits_json(value) else None for key, value in line.items()}
            # Opened for each line: a few microseconds, and a killed run keeps every line that it had.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")

    def cut_after(self, update: int) -> None:
        """Forget what came after an update; a line that a crash cut short goes too."""
        if self.path is not None and self.path.exists():
            kept = [line for line in read_history(self.path) if line["update"] <= update]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a history file, in order."""
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # The last line of a killed run may be half a line; nothing follows it.
    return lines


def _fits_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
