"""`python -m tests.integration.faults --size small`: harm done to the real thing, and a record of what was noticed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from finetune.record import commit
from tests.integration.faults import crashes, damage, evaluation, exits, fuzz, hostile, kills, order, peers, table
from tests.integration.faults.records import Records

# Cases of each part. Of the crash matrix, every n-th point; of the peers, each measure of each.
SIZES = {
    "sample": {
        "damage": 24, "every": 11, "fuzz": 60, "commands": 0, "hostile": 30, "kills": 2, "order": 10, "elastic": 0,
        "evaluation": 16, "processes": 2, "clean": 1, "lost": 0, "frozen": 0,
        "peer_kills": 0, "peer_damages": 0, "peer_stops": 0,
    },
    "small": {
        "damage": 100, "every": 1, "fuzz": 500, "commands": 10, "hostile": 60, "kills": 20, "order": 20, "elastic": 1,
        "evaluation": 40, "processes": 4, "clean": 10, "lost": 3, "frozen": 3,
        "peer_kills": 4, "peer_damages": 10, "peer_stops": 2,
    },
    "full": {
        "damage": 500, "every": 1, "fuzz": 5000, "commands": 100, "hostile": 300, "kills": 200, "order": 100,
        "elastic": 3, "evaluation": 200, "processes": 4, "clean": 100, "lost": 20, "frozen": 5,
        "peer_kills": 20, "peer_damages": 70, "peer_stops": 13,
    },
}  # fmt: skip
# What --only takes, and the keys of the record that it makes.
PARTS = {
    "damage": ["damage"],
    "crash": ["crash", "refused writes"],
    "fuzz": ["fuzz", "fuzzed commands"],
    "hostile": ["hostile"],
    "kills": ["kills"],
    "order": ["order", "elastic"],
    "evaluation": ["evaluation"],
    "exits": ["clean exits", *(f"one {kind}" for kind in exits.LIMITS_S)],
    "peers": [f"{peer}: {name}" for peer in peers.PEERS for name in peers.MEASURES],
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
    parser.add_argument("--table", action="store_true", help="run nothing: write the README's table of the records")
    arguments = parser.parse_args()
    if arguments.table:
        print(table.write())
        return 0
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
    if "order" in chosen:
        order.run(records, sizes["order"], sizes["elastic"], work)
    if "evaluation" in chosen:
        evaluation.run(records, sizes["evaluation"], sizes["processes"], work)
    if "exits" in chosen:
        exits.run(records, sizes["clean"], sizes["lost"], sizes["frozen"], work)
    if "peers" in chosen:
        peers.run(records, sizes["peer_kills"], sizes["peer_damages"], sizes["peer_stops"], work)
    print(records.table())
    return int(any(entry["failures"] for entry in records.content.values()))


if __name__ == "__main__":
    sys.exit(main())
