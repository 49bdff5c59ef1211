"""What the normal suite runs of the matrix: each recipe, each adapter, but not each pair; `make matrix` runs those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.matrix.cases import Case, all_cases
from tests.matrix.roles import Plan, run
from tests.matrix.verdicts import verdict, wrong

# A checkpoint of all weights of BERT takes as long as everything else of a case, so bert_cls has it alone.
ONLY_LORA = ("bert_pair", "bert_ner", "bert_mlm", "few_shot_cls", "resnet_pretrain")
LEFT_OUT = {f"{base}-{adapter}" for base in ONLY_LORA for adapter in ("full", "adalora")}
# GPT-2 of letters in place of SmolLM2.
SAMPLE = [case for case in all_cases(letters=True) if case.name not in LEFT_OUT]
PATIENCE_S = 300.0


def sample_of(*bases: str) -> list[Case]:
    """The sample's cases of these recipes."""
    return [case for case in SAMPLE if case.base in bases]


def verdicts_of(cases: Sequence[Case], work: Path) -> dict[str, list[str]]:
    """What is wrong with each case, by its name; run in an interpreter of its own, which forks."""
    names = ",".join(case.name for case in cases)
    done = subprocess.run(
        [sys.executable, "-m", "tests.matrix.sample", str(work), names],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-6000:])
    return dict(json.loads((work / "verdicts.json").read_text("utf-8")))


def main(work: Path, names: Sequence[str]) -> None:
    """Run cases of the sample and write what is wrong with each to verdicts.json."""
    plan = Plan(work, [case for case in SAMPLE if case.name in names], lambda case: (2,))
    run(plan, PATIENCE_S)
    found = {case.name: verdict(plan, case) for case in plan.cases}
    print(json.dumps(found))
    (work / "verdicts.json").write_text(json.dumps({case.name: wrong(case, found[case.name]) for case in plan.cases}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
