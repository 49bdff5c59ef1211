"""Elastic mode: the same bits with 1, 2 and 4 processes, and when their number changes on the way.

The processes are forks of one interpreter, as in the matrix; the launch line with two is in other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.files import sha256_file
from tests.integration.test_launch_line import record_of
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

RUNS = """
import json, shutil, sys
from pathlib import Path

from tests.forks import import_all
from tests.matrix.roles import fork_all

work, reviews = Path(sys.argv[1]), sys.argv[2]
SETTINGS = [
    "train.deterministic=elastic", "train.max_updates=4", "train.save_every_updates=1", "train.keep_checkpoints=9",
    "train.batch_size=22",  # 4 shards: 2 processes have two each; a third process would have an empty one
    "train.lr=1e-3", "data.max_tokens=24", "objective.baselines=false",
    "adapter=lora",  # small checkpoints; every gradient goes the same way
]
FLAGS = ["bert_cls", "--data", reviews, *(word for setting in SETTINGS for word in ("--set", setting))]


def call(*arguments):
    from finetune.cli import main

    if main(["run", *map(str, arguments)]):
        raise RuntimeError(f"{arguments} failed")


def cut_back(folder, update):
    # As if the run had been killed after it.
    for checkpoint in (folder / "checkpoints").glob("update_*"):
        if int(checkpoint.name.removeprefix("update_")) > update:
            shutil.rmtree(checkpoint)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    shutil.rmtree(folder / "model")


import_all()
for world in (1, 2, 4):
    fork_all(f"whole-{world}", work, lambda: call(*FLAGS, "--output", work / str(world)), world, 200)
moved = shutil.copytree(work / "1", work / "moved")
for update, world in ((1, 2), (3, 1)):
    cut_back(moved, update)
    fork_all(f"moved-{world}", work, lambda: call("--resume", moved), world, 200)
"""


def bits(folder: Path) -> tuple[str, str, str]:
    """Of the exported weights, the optimizer's last state and the log of every update and evaluation."""
    last = folder / "checkpoints" / "update_00000004"
    files = (folder / "model" / "model.safetensors", last / "optimizer.safetensors", folder / "history.jsonl")
    return tuple(map(sha256_file, files))  # type: ignore[return-value]


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=160)
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path), str(reviews)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    alone = bits(tmp_path / "1")
    assert len((tmp_path / "1" / "history.jsonl").read_text().splitlines()) > 4
    for processes in (2, 4):
        assert record_of(tmp_path / str(processes))["hardware"]["processes"] == processes
        assert bits(tmp_path / str(processes)) == alone
    assert bits(tmp_path / "moved") == alone
    # The last of its three lives had one process; that the second had two, its log says.
    assert "2 process(es)" in (tmp_path / "moved-2-0.log").read_text("utf-8", errors="replace")
    assert json.loads((tmp_path / "moved" / "run.json").read_text())["status"] == "completed"
