"""history.jsonl: one line an update and one an evaluation, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import contextlib
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
            # Opened for each line: a few microseconds, and a killed run keeps every line that it had.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def cut_after(self, update: int) -> None:
        """Forget what came after an update; a line that a crash cut short goes too."""
        if self.path is not None and self.path.exists():
            kept = [line for line in read_history(self.path) if line["update"] <= update]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a history file, in order.

    The last line of a killed run may be half a line, and a disk can damage any; such a line is passed over, because
    a history is there to be looked at: it must not keep a run from going on.
    """
    lines = []
    for text in path.read_text("utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("update"), int):
                lines.append(line)
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
