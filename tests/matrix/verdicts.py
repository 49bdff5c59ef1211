"""What came out of a case of the matrix, and whether it is as it should be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.history import read_history
from finetune.verify import differences
from tests.matrix.cases import Case
from tests.matrix.roles import Plan

# Relative, of losses, gradient norms and validation metrics in fp32.
TOLERANCE = 1e-5
# Normalises by the rows that one process holds: its running statistics, and so its scores, follow the processes.
BATCH_NORM = ("resnet_img-full", "resnet_img-lora", "resnet_pretrain-full")


def verdict(plan: Plan, case: Case) -> dict[str, Any]:
    """Of one case, JSON-able.

    Returns:
        two_processes: largest relative difference of losses, gradient norms and validation metrics from one process's.
        resumed: what differs from the whole run, by processes and stop: nothing is good.
        copy: what differs from the built-in recipe; only where it is copied.
        errors: tracebacks.
    """
    errors = [path.read_text() for path in sorted((plan.work / case.name).rglob("error-*.txt"))]
    if errors:
        return {"errors": errors}
    found: dict[str, Any] = {"two_processes": _two_against_one(plan, case), "resumed": {}}
    for world in (1, 2):
        for stop in plan.stops(case):
            different = unequal(plan.whole(case, world), plan.resumed(case, world, stop), world)
            found["resumed"][f"{world} after {stop}"] = different
    if case.copied:
        found["copy"] = unequal(plan.whole(case, 1), plan.copied(case), 1)
    return found


def _two_against_one(plan: Plan, case: Case) -> dict[str, float]:
    one, two = (read_history(plan.whole(case, world) / "history.jsonl") for world in (1, 2))
    if [line["update"] for line in one] != [line["update"] for line in two]:
        return {"loss": math.inf}
    largest = {"loss": 0.0, "grad_norm": 0.0, "metrics": 0.0}
    for mine, theirs in zip(one, two, strict=True):
        pairs = [("metrics", value, theirs["valid"][name]) for name, value in mine.get("valid", {}).items()]
        pairs += [(name, mine[name], theirs[name]) for name in ("loss", "grad_norm") if name in mine]
        for name, a, b in pairs:
            largest[name] = max(largest[name], abs(a - b) / max(abs(a), 1e-30))
    return largest


def unequal(whole: Path, other: Path, world: int) -> list[str]:
    """What of two runs is not the same to the bit: weights, optimizer, adapter, progress, log."""
    found = differences(whole, other)
    for rank in range(world):
        if (whole / f"weights-{rank}").read_text() != (other / f"weights-{rank}").read_text():
            found.append(f"the weights that process {rank} ends with")
    if (whole / "weights-0").read_text() != (whole / f"weights-{world - 1}").read_text():
        found.append("the weights of the two processes")
    states = [
        json.loads((max((run / "checkpoints").glob("update_*")) / "state.json").read_text()) for run in (whole, other)
    ]
    found += [f"{part} of state.json" for part in ("progress", "numbers") if states[0][part] != states[1][part]]
    return found


def wrong(case: Case, found: Mapping[str, Any]) -> list[str]:
    """What of a verdict is not as it should be."""
    if "errors" in found:
        return list(found["errors"])
    messages = [f"resumed, {how}: {what}" for how, what in found["resumed"].items() if what]
    messages += [f"copied: {found['copy']}"] if found.get("copy") else []
    far = {name: value for name, value in found["two_processes"].items() if not value <= TOLERANCE}
    if case.name in BATCH_NORM:  # what is left is the loss, which rows of a micro-batch decide alone
        far.pop("metrics", None)
    return messages + ([f"2 processes against 1: {far}"] if far else [])
