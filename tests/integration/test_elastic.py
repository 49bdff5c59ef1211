"""Elastic mode: the same bits with 1, 2 and 4 processes, and when their number changes on the way.

The processes are forks of one interpreter; the launch line with two is in other tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.faults.order import elastic_bits, make_elastic_runs
from tests.integration.test_launch_line import record_of
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=160)
    # LoRA: small checkpoints; every gradient goes the same way.
    assert make_elastic_runs("lora", reviews, tmp_path) == ""
    alone = elastic_bits(tmp_path / "1")
    assert len((tmp_path / "1" / "history.jsonl").read_text().splitlines()) > 4
    for processes in (2, 4):
        assert record_of(tmp_path / str(processes))["hardware"]["processes"] == processes
        assert elastic_bits(tmp_path / str(processes)) == alone
    assert elastic_bits(tmp_path / "moved") == alone
    assert record_of(tmp_path / "moved")["status"] == "completed"
