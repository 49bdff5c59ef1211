"""The audit hook of Python over whole runs: no pickle looks a class up, but in queues of our own loader workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers import write_reviews

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

RUNS = """
import json, os, pickle, shutil, sys, traceback
from pathlib import Path

from tests.matrix.roles import fork_all

work, reviews = Path(sys.argv[1]), sys.argv[2]
SETTINGS = ["adapter=lora", "train.max_updates=3", "train.save_every_updates=1", "train.keep_checkpoints=9",
            "data.max_tokens=24", "train.batch_size=8", "train.threads=1"]
FLAGS = ["bert_cls", "--data", reviews, *(word for setting in SETTINGS for word in ("--set", setting))]
seen, queued = [], []


def hook(event, args):
    if event == "pickle.find_class":
        frames = traceback.extract_stack()
        own = any(frame.filename.endswith(("multiprocessing/queues.py", "multiprocessing/connection.py"))
                  for frame in frames)
        where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-6:-1]]
        (queued if own else seen).append(f"{args} {where}")


def call(*arguments):
    from finetune.cli import main

    if main(list(map(str, arguments))):
        raise RuntimeError(f"{arguments} failed")


def written(name):
    found = {"seen": seen, "queued": len(queued)}
    (work / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def one():
    sys.addaudithook(hook)
    pickle.loads(pickle.dumps(Path("it works")))
    assert len(seen) == 1, "the hook sees nothing"
    seen.clear()
    run = work / "one"
    call("run", *FLAGS, "--set", "train.workers=1", "--output", run)
    shutil.rmtree(run / "checkpoints" / "update_00000003")
    shutil.rmtree(run / "model")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    call("run", "--resume", run)
    call("predict", run, "--text", "A dull film.")
    call("merge", run, "--dtype", "bfloat16")
    written("one")


def two():
    sys.addaudithook(hook)
    call("run", *FLAGS, "--output", work / "two")
    written("two")


fork_all("two", work, two, 2, 200)
fork_all("one", work, one, 1, 200)
"""


def test_no_class_is_looked_up_in_a_run_a_resumed_run_and_a_prediction(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=120)
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path), str(reviews)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*-[01].json")}
    assert {name: entry["seen"] for name, entry in found.items()} == {"one-0": [], "two-0": [], "two-1": []}
    # Collated rows of the loader worker come by a queue, as pickles that this run itself made.
    assert found["one-0"]["queued"] > 0
    assert (found["two-0"]["queued"], found["two-1"]["queued"]) == (0, 0)
