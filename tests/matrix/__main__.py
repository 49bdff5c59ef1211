"""Every recipe with every adapter on real rows: 2 processes against 1, resumed runs against whole ones, and copies.

    python -m tests.matrix        # `make matrix`: every case, with SmolLM2 and a stop after every update

A case is a recipe, an adapter and a few updates with dropout, accumulation and augmentation on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.files import write_json
from finetune.record import commit, versions
from tests.matrix.cases import DATA, NEED_DATA, UPDATES, Case, all_cases
from tests.matrix.roles import Plan, run
from tests.matrix.verdicts import verdict, wrong

RECORD = Path(__file__).parent / "results.json"


def main() -> int:
    """1 when something is not as it should be. Cases that the record has are not run again."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument(
        "--cases", default="", metavar="NAME,...", help="of these cases only, for example gpt2_clm-lora"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what the record has")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text()) if arguments.record.exists() and not arguments.fresh else {}
    wanted = set(filter(None, arguments.cases.split(",")))
    for case in all_cases(letters=False):
        if case.name in record or (wanted and case.name not in wanted):
            continue
        if case.base in NEED_DATA and not (DATA / "glue").is_dir():
            print(f"{case.name}: skipped, FINETUNE_DATA names no folder with glue and wnut17")
            continue
        # Not a TemporaryDirectory: the forks would take it away when they leave.
        work, began = Path(tempfile.mkdtemp(prefix="finetune-matrix-")), time.monotonic()
        plan = Plan(work, [case], every_update)
        run(plan, 900)
        found = verdict(plan, case) | {"seconds": round(time.monotonic() - began, 1), "recipe": case.recipe}
        shutil.rmtree(work)
        record[case.name] = found | {"wrong": wrong(case, found), "commit": commit(), "versions": versions()}
        write_json(arguments.record, record)
        print(f"{case.name}: {record[case.name]['wrong'] or 'exact'} {found.get('two_processes')}", flush=True)
    return int(any(entry["wrong"] for entry in record.values()))


def every_update(case: Case) -> Sequence[int]:
    """SmolLM2 and its optimizer are 1.6 GB a checkpoint: there, one stop is enough."""
    large = case.base in ("gpt2_clm", "gpt2_sft") and not case.letters and case.adapter == "full"
    return (2,) if large else range(1, UPDATES)


if __name__ == "__main__":
    sys.exit(main())
