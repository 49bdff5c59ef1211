"""No memory for a micro-batch: the update is begun again in halves, and ends with the same bits.

The memory is really gone: the process may not map more (RLIMIT_AS) than three quarters of what the same run needed
without that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.updates import MicroBatch
from finetune.errors import TrainingError
from finetune.gradients import Averaged
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

RUNS = """
import json, re, resource, sys
from pathlib import Path

import numpy as np
import torch

from finetune.evaluation import predict
from finetune.evaluation.predict import predict_rows
from tests.forks import import_all
from tests.matrix.roles import fork_all, make_trainer

work, reviews = Path(sys.argv[1]), sys.argv[2]
SETTINGS = [
    "train.precision=fp32", "train.threads=1", "train.batch_size=32", "train.max_updates=2", "train.epochs=9",
    "train.reuse_memory=false", "train.length_buckets=false", "adapter=lora", f"data.source={reviews}",
    "data.max_tokens=40", "train.lr=1e-3", "train.lr_warmup_updates=0",
]


def mapped(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def no_room(trainer, rank, rows):
    # This process has no memory for more rows, which it notices in the forward pass; the others have.
    def notice(module, args, inputs):
        if len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("no memory")

    if trainer.accelerator.process_index == rank:
        trainer.model.register_forward_pre_hook(notice, with_kwargs=True)


def train(name, micro, limited=None, more=(), room=None):
    trainer = make_trainer("bert_cls", [*SETTINGS, *more, f"train.micro_batch_size={micro}"], work / name)
    before, rank = mapped("VmSize"), trainer.accelerator.process_index
    if limited is not None and limited[0] == rank:
        needed = json.loads((work / limited[1] / "needed.json").read_text())
        resource.setrlimit(resource.RLIMIT_AS, (before + needed * 3 // 4,) * 2)
    if room is not None:
        no_room(trainer, 1, room)
    trainer.fit()
    if rank == 0:
        (work / name / "needed.json").write_text(json.dumps(mapped("VmPeak") - before))


def last_of(name):
    # What was small enough in the end: memory in pieces may ask for a second halving.
    return re.findall(r"begun again with (\\d+)", (work / f"{name}-0.log").read_text())[-1]


def judge(name, limited=None):
    predict.CPU_TOKENS = 8192  # all rows in one batch or two: its activations are most of what is needed
    trainer = make_trainer("bert_cls", [*SETTINGS, "model.dropout=0", "data.max_tokens=64"], work / name)
    task, before = trainer.task, mapped("VmSize")
    if limited is not None:
        needed = json.loads((work / limited / "needed.json").read_text())
        resource.setrlimit(resource.RLIMIT_AS, (before + needed * 3 // 4,) * 2)
    outputs = predict_rows(trainer.model, task.rows["train"], task.collate, task.outputs, trainer.accelerator, "train")
    (work / name / "needed.json").write_text(json.dumps(mapped("VmPeak") - before))
    np.save(work / name / "outputs.npy", outputs)


def judge_by_two(name):
    trainer = make_trainer("bert_cls", [*SETTINGS, "model.dropout=0", "data.max_tokens=64"], work / name)
    task, rank = trainer.task, trainer.accelerator.process_index
    model = trainer.gradients.prepare(trainer.model)
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    no_room(trainer, 0, 8)
    for attempt in ("first", "second"):  # the second as well: the processes are still in step
        outputs = predict_rows(model, task.rows["train"], task.collate, task.outputs, trainer.accelerator, attempt)
        np.save(work / name / f"outputs-{attempt}-{rank}.npy", outputs)


roles = {
    "judged-by-two": (2, lambda: judge_by_two("judged-by-two")),
    "judged": (1, lambda: judge("judged")),
    "judged-short": (1, lambda: judge("judged-short", "judged")),
    "whole": (1, lambda: train("whole", 32)),
    "short": (1, lambda: train("short", 32, (0, "whole"))),
    "halves": (1, lambda: train("halves", last_of("short"))),
    "two-short": (2, lambda: train("two-short", 16, room=8)),
    "two-halves": (2, lambda: train("two-halves", 8)),
    "elastic": (1, lambda: train("elastic", 32, (0, "whole"), ["train.deterministic=elastic"])),
}
import_all()
ended = {}
for role, (world, function) in roles.items():
    try:
        fork_all(role, work, function, world, 120)
        ended[role] = ""
    except RuntimeError as error:
        ended[role] = str(error)[-3000:]
(work / "ended.json").write_text(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    reviews = write_reviews(folder / "reviews.csv", rows=120)
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(folder), str(reviews)],
        cwd=ROOT,
        # Every tensor in a mapping of its own, unmapped when it is freed: what is left does not depend on pieces.
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ended(work: Path) -> Any:
    return json.loads((work / "ended.json").read_text())


def log(work: Path, role: str) -> str:
    return (work / f"{role}-0.log").read_text("utf-8", errors="replace")


def test_the_update_is_begun_again_in_halves(work: Path) -> None:
    assert (ended(work)["short"], ended(work)["halves"]) == ("", "")
    said = "No memory was left for 32 rows at a time: the update is begun again with 16"
    assert said in log(work, "short")
    assert said not in log(work, "halves")
    assert (work / "short" / "history.jsonl").read_bytes() == (work / "halves" / "history.jsonl").read_bytes()
    for name in ("model", "optimizer"):
        path = Path("checkpoints") / "update_00000002" / f"{name}.safetensors"
        assert (work / "short" / path).read_bytes() == (work / "halves" / path).read_bytes()


def test_two_processes_begin_again_where_one_has_no_memory(work: Path) -> None:
    assert (ended(work)["two-short"], ended(work)["two-halves"]) == ("", "")
    said = "No memory was left for 16 rows at a time: the update is begun again with 8"
    assert said in log(work, "two-short")
    assert said not in log(work, "two-halves")
    assert (work / "two-short" / "history.jsonl").read_bytes() == (work / "two-halves" / "history.jsonl").read_bytes()
    for name in ("model", "optimizer"):
        path = Path("checkpoints") / "update_00000002" / f"{name}.safetensors"
        assert (work / "two-short" / path).read_bytes() == (work / "two-halves" / path).read_bytes()


def test_one_of_several_processes_without_any_room_says_what_to_set() -> None:
    """Its gradients are what the others wait for: it ends, and they with it."""

    def no_room(_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    accelerator: Any = SimpleNamespace(
        num_processes=2, process_index=1, device=torch.device("cpu"), backward=lambda loss: None
    )
    micro = MicroBatch(0, {}, False, (3, 4, 5))
    with pytest.raises(TrainingError, match=r"process 1 for a micro-batch of 3 rows.*\n.*train\.micro_batch_size"):
        Averaged(accelerator).accumulate(torch.nn.Linear(1, 1), [micro], no_room, torch.ones(()), lambda: None)


def test_it_is_another_run_where_the_order_of_sums_is_the_promise(work: Path) -> None:
    assert "train.micro_batch_size=16" in ended(work)["elastic"]
    assert "another run" in ended(work)["elastic"]
    assert not (work / "elastic" / "history.jsonl").exists()


def test_an_evaluation_is_begun_again_in_halves(work: Path) -> None:
    assert (ended(work)["judged"], ended(work)["judged-short"]) == ("", "")
    assert "train: no memory was left for" in log(work, "judged-short")
    assert "no memory was left" not in log(work, "judged")
    whole, short = (np.load(work / name / "outputs.npy") for name in ("judged", "judged-short"))
    assert np.abs(whole - short).max() < 1e-6


def test_an_evaluation_by_two_is_begun_again_when_one_has_no_memory(work: Path) -> None:
    assert ended(work)["judged-by-two"] == ""
    alone = np.load(work / "judged" / "outputs.npy")
    for attempt in ("first", "second"):
        assert f"{attempt}: no memory was left for" in log(work, "judged-by-two")
        for rank in (0, 1):
            outputs = np.load(work / "judged-by-two" / f"outputs-{attempt}-{rank}.npy")
            assert np.abs(outputs - alone).max() < 1e-6
