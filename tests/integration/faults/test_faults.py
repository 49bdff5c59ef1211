"""A sample of each fault harness; `make faults` and `make faults-full` are larger and keep their records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.faults.records import Outcome, Records

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


def test_a_sample_of_every_harness_fails_in_no_case(tmp_path: Path) -> None:
    record = tmp_path / "sample.json"
    command = [sys.executable, "-m", "tests.integration.faults", "--size", "sample", "--record", str(record)]
    command += ["--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads(record.read_text())
    parts = {"damage", "crash", "refused writes", "fuzz", "hostile", "kills", "order", "evaluation", "clean exits"}
    assert parts <= set(content)
    for part, entry in content.items():
        assert entry["done"] == entry["total"], part
        assert entry["failures"] == [], part


def test_what_was_stopped_goes_on_and_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    ran: list[int] = []

    def case(number: int) -> Outcome:
        if number == 2 and ran.count(2) == 0:
            ran.append(number)
            raise KeyboardInterrupt
        ran.append(number)
        return Outcome("well", "not so" if number == 1 else "")

    record = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        Records(record, 0).run("part", 4, case)
    for _ in range(2):
        entry = Records(record, 0).run("part", 4, case)
    assert ran == [0, 1, 2, 2, 3]
    assert (entry["done"], entry["outcomes"]) == (4, {"well": 3, "FAILED": 1})
    assert [(failure["case"], failure["what"]) for failure in entry["failures"]] == [(1, "not so")]
