"""Times of a peer's updates, and what of them counts."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any


class Clock:
    """Notes when each update is done, and what it held.

    Attributes:
        batches: (rows, real tokens) of every batch, in the order in which they were made: that of the updates.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.batches: list[tuple[int, int]] = []
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.peak_kb = 0
        self.started = time.perf_counter()

    def start(self) -> None:
        """What a whole training is timed from."""
        self.started = time.perf_counter()

    def update_done(self) -> None:
        self.peak_kb = _peak_kb()
        self.ends.append(time.perf_counter())

    def found(self, precision: str, accuracy: float | None = None) -> dict[str, Any]:
        """The JSON: steady state without the warm-up, or a whole training from `start` to now's last update."""
        import torch

        request = self.request
        whole, warm_up = bool(request["epochs"]), request["warm_up"]
        timed = slice(None) if whole else slice(warm_up, warm_up + request["updates"])
        ends = self.ends[timed]
        if not whole:
            assert len(ends) == request["updates"], f"{len(ends)} updates were timed, not {request['updates']}"
        held = self.batches[timed][: len(ends)]
        found: dict[str, Any] = {
            "seconds": ends[-1] - (self.started if whole else self.ends[warm_up - 1]),
            "updates": len(ends),
            "examples": sum(rows for rows, _ in held),
            "tokens": sum(tokens for _, tokens in held),
            "peak_rss_mb": round(self.peak_kb / 2**10, 1),
            "precision": precision,
            "threads": torch.get_num_threads(),
        }
        if accuracy is not None:
            found["accuracy"] = accuracy
        return found


def _peak_kb() -> int:
    """Largest resident memory so far: VmHWM, because getrusage's number has that of the parent in it, on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
