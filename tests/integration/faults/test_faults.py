"""A sample of each fault harness; `make faults` and `make faults-full` are larger and keep their records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


def test_a_sample_of_every_harness_fails_in_no_case_and_is_not_run_twice(tmp_path: Path) -> None:
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
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert {part: entry["seconds"] for part, entry in content.items()} == {
        part: entry["seconds"] for part, entry in json.loads(record.read_text()).items()
    }
