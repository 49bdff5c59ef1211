"""`finetune bench speed`: one tiny row of it end to end, both sides on their real model and rows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.bench.speed.data_path import JUDGED_ROWS, write_rows

pytestmark = pytest.mark.integration

CALL = "from finetune.cli import console; console()"


def test_two_updates_beside_setfit(tmp_path: Path) -> None:
    line = ["bench", "speed", "--rows", "few_shot", "--pairs", "1", "--updates", "2", "--busy", "--out", "speed"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def speed() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CALL, *line]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    first = speed()
    assert first.returncode == 0, first.stderr
    sides = {
        path.stem: json.loads(path.read_text("utf-8"))["found"]
        for path in (tmp_path / "speed" / "records" / "few_shot").glob("*.json")
    }
    assert sorted(sides) == ["0-default", "0-finetune"]
    ours, peer = sides["0-finetune"], sides["0-default"]
    # The same work on both: pairs of 16 texts.
    assert ours["examples"] == peer["examples"] == 32
    assert ours["updates"] == peer["updates"] == 2
    assert all(side["threads"] == ours["threads"] and 0.4 < side["accuracy"] < 0.95 for side in sides.values())
    row = json.loads((tmp_path / "speed" / "speed.json").read_text("utf-8"))["rows"]["few_shot"]
    assert row["ratios"]["default"]["median"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert f"{row['ratios']['default']['median']:.2f} [" in first.stdout

    again = speed()  # nothing is left to measure: documents are made again from the records
    assert (again.returncode, again.stderr, again.stdout) == (0, "", first.stdout)


def test_rows_of_the_data_path_are_real_and_no_two_alike(tmp_path: Path) -> None:
    write_rows(9_000, tmp_path / "data")  # more than there are snippets
    texts = []
    for name, count in (("train", 9_000), ("valid", JUDGED_ROWS), ("test", JUDGED_ROWS)):
        with (tmp_path / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        assert {row["label"] for row in rows} == {"negative", "positive"}
        texts += [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
