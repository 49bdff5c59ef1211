"""The README's table of faults, made of the committed records: `python -m tests.integration.faults --table`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parents[3] / "README.md"
RESULTS = Path(__file__).parent / "results"
MATRIX = Path(__file__).parents[2] / "matrix" / "results.json"
BEGIN, END = "<!-- faults: python -m tests.integration.faults --table -->", "<!-- end of faults -->"
# As the harnesses name them; imported from there, a table would take as long as PyTorch does.
PEERS, LOST = ("trainer", "accelerate"), ("raised", "left early", "killed", "frozen")
NOT_YET = "not measured yet"
Entries = Mapping[str, Mapping[str, Any]]


def write() -> str:
    """Put the table into the README; returns it."""
    text = README.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{README} has no place for the table: {BEGIN} and {END}")
    README.write_text(f"{before}{BEGIN}\n{(table := made(records()))}\n{END}{after}", "utf-8")
    return table


def committed() -> str:
    """The table that the README has."""
    return README.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def records() -> dict[str, Any]:
    """Every part as the full size found it, or the small one where that was not run to its end."""
    found: dict[str, Any] = {}
    for size in ("small", "full"):
        path = RESULTS / f"{size}.json"
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        found |= {part: entry for part, entry in content.items() if entry["done"] == entry["total"] > 0}
    return found


def made(entries: Entries) -> str:
    """Markdown: our own outcomes, and the peers' where they were put through the same."""
    rows = [
        ("killed (SIGKILL) and resumed", _kills(entries), *(_peer_kills(entries, peer) for peer in PEERS)),
        (
            "a file of the newest checkpoint damaged",
            _all(entries, ["damage"], "noticed"),
            *(_peer_damage(entries, peer) for peer in PEERS),
        ),
        (
            "stopped after an update and resumed, with dropout",
            _matrix(),
            *(_stops(entries, peer) for peer in PEERS),
        ),
        (
            "2 processes instead of 1: largest relative difference of a weight",
            _elastic(entries),
            *(_peer_elastic(entries, peer) for peer in PEERS),
        ),
        ("died before, in or after any file operation of a save", _all(entries, ["crash"], "left a whole checkpoint")),
        (
            "a write refused (full, read-only, I/O error, quota)",
            _all(entries, ["refused writes"], "lost no checkpoint"),
        ),
        (
            "resumed by another number of processes (1 to 8)",
            _all(entries, ["order"], "in the same order, each row once an epoch"),
        ),
        (
            "evaluated by 1 to 4 processes",
            _all(entries, ["evaluation"], "with each row once and the metrics of one process"),
        ),
        ("two processes to a clean end", _all(entries, ["clean exits"], "exit 0, no orphan")),
        (
            "one of two raised, left, was killed (15 s) or frozen (60 s)",
            _all(entries, [f"one {kind}" for kind in LOST], "ended in time, culprit named"),
        ),
        ("hostile files (pickles, links, bombs, ...)", _all(entries, ["hostile"], "ran or wrote nothing")),
        ("malformed input", _all(entries, ["fuzz", "fuzzed commands"], "one message, no traceback")),
    ]
    trainer, accelerate = _named(entries, "HF Trainer", "transformers"), _named(entries, "Accelerate", "accelerate")
    lines = [f"| what is done to a run | this toolkit | {trainer} | {accelerate} |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join([*row, *[''] * (4 - len(row))])} |" for row in rows]
    return "\n".join(lines)


def _named(entries: Entries, name: str, package: str) -> str:
    """With the version that the record has."""
    return f"{name} {entries.get('trainer: kills', {}).get('versions', {}).get(package, '')}".strip()


def _all(entries: Entries, parts: Sequence[str], well: str) -> str:
    found = [entries[part] for part in parts if part in entries]
    if len(found) < len(parts):
        return NOT_YET
    return f"{_good(found)} {well}"


def _good(found: Sequence[Mapping[str, Any]]) -> str:
    total = sum(entry["done"] for entry in found)
    return f"{total - sum(len(entry['failures']) for entry in found):,} of {total:,}"


def _kills(entries: Entries) -> str:
    if "kills" not in entries:
        return NOT_YET
    outcomes = entries["kills"]["outcomes"]
    inside = sum(count for kind, count in outcomes.items() if kind.endswith(("save", "rotate")))
    return f"{_good([entries['kills']])} with the same bits, {inside} killed in a save"


def _sum(entry: Mapping[str, Any], beginning: str) -> int:
    return sum(count for kind, count in entry["outcomes"].items() if kind.startswith(beginning))


def _peer_kills(entries: Entries, peer: str) -> str:
    if (entry := entries.get(f"{peer}: kills")) is None:
        return NOT_YET
    outcomes, killed = entry["outcomes"], entry["done"] - _sum(entry, "ended")
    inside = sum(count for kind, count in outcomes.items() if kind.endswith("save"))
    return (
        f"{_sum(entry, 'resumed')} of {killed} resumed, {_sum(entry, 'resumed, same')} with the same bits, "
        f"{inside} killed in a save"
    )


def _peer_damage(entries: Entries, peer: str) -> str:
    if (entry := entries.get(f"{peer}: damage")) is None:
        return NOT_YET
    return f"{_sum(entry, 'noticed')} of {entry['done']} noticed, {_sum(entry, 'silent, other')} silent with other bits"


def _matrix() -> str:
    if not MATRIX.exists():
        return NOT_YET
    entries = json.loads(MATRIX.read_text("utf-8"))
    exact = sum(not entry["wrong"] for entry in entries.values())
    return f"{exact} of {len(entries)} recipes and adapters with the same bits, by 1 and by 2 processes"


def _stops(entries: Entries, peer: str) -> str:
    if (entry := entries.get(f"{peer}: resume")) is None:
        return NOT_YET
    return f"{_sum(entry, 'resumed, same')} of {entry['done']} with the same bits"


def _elastic(entries: Entries) -> str:
    if (entry := entries.get("elastic")) is None:
        return NOT_YET
    return f"none ({_good([entry])} adapters, elastic mode; also 4, and 1 to 2 to 1)"


def _peer_elastic(entries: Entries, peer: str) -> str:
    if (entry := entries.get(f"{peer}: elastic")) is None:
        return NOT_YET
    return ", ".join(entry["outcomes"])
