"""`python -m tests.integration.faults --size small`: harm done to the real thing, and a record of what was noticed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from finetune.record import commit
from tests.integration.faults import crashes, damage, fuzz, hostile, kills
from tests.integration.faults.records import Records

# Of the crash matrix, the sample takes every 11th point. Its kills are `finetune verify resume`, in a test of its own.
SIZES = {
    "sample": {"damage": 24, "kills": 0, "fuzz": 60, "hostile": 30, "commands": 0, "every": 11},
    "small": {"damage": 100, "kills": 20, "fuzz": 500, "hostile": 60, "commands": 10, "every": 1},
    "full": {"damage": 500, "kills": 200, "fuzz": 5000, "hostile": 300, "commands": 100, "every": 1},
}
# What --only takes, and the keys of the record that it makes.
PARTS = {
    "damage": ["damage"],
    "crash": ["crash", "refused writes"],
    "fuzz": ["fuzz", "fuzzed commands"],
    "hostile": ["hostile"],
    "kills": ["kills"],
}


def main() -> int:
    """1 when a case failed. A run that was stopped goes on where it was when started again."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.faults", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="default: results/SIZE.json beside this file")
    parser.add_argument("--work", type=Path, help="where the runs go; needed again to go on (default: in /tmp)")
    parser.add_argument("--fresh", action="store_true", help="forget what the record has")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only {sorted(unknown)[0]}: there are {', '.join(PARTS)}")
    sizes = SIZES[arguments.size]
    path = arguments.record or Path(__file__).parent / "results" / f"{arguments.size}.json"
    records = Records(path, arguments.seed)
    if arguments.fresh:
        records.forget([name for part in chosen for name in PARTS[part]])
    # Of one commit: what was made by another version is not what this one is to be compared with.
    version = (commit() or "none")[:12]
    work = arguments.work or Path(tempfile.gettempdir()) / f"finetune-faults-{arguments.size}-{version}"
    work.mkdir(parents=True, exist_ok=True)
    if "damage" in chosen:
        damage.run(records, sizes["damage"], work)
    if "crash" in chosen:
        crashes.run(records, work, sizes["every"])
    if "fuzz" in chosen:
        fuzz.run(records, sizes["fuzz"], sizes["commands"], work)
    if "hostile" in chosen:
        hostile.run(records, sizes["hostile"], work)
    if "kills" in chosen:
        kills.run(records, sizes["kills"], work)
    print(records.table())
    return int(any(entry["failures"] for entry in records.content.values()))


if __name__ == "__main__":
    sys.exit(main())
