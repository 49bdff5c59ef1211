"""Evaluation over processes that really are processes: each row exactly once, outputs and metrics those of one.

    forks().start([FOLDER, SEED, CASES, PROCESSES], ..., world=3, module="tests.integration.faults.evaluation")

runs all cases of that number of processes in one group; what each process got is compared afterwards.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

from finetune.data.tokens import TokenRows, pad_tokens
from finetune.evaluation import predict
from finetune.evaluation.judge import ClassificationJudge
from finetune.evaluation.predict import mean_pooled, predict_rows
from finetune.files import write_json
from tests.forks import forks
from tests.integration.faults.order import real_rows, real_task, some_rows
from tests.integration.faults.records import Outcome, Records

CLASSES = 3
PATIENCE_S = 600.0


def run(records: Records, total: int, processes: int, work: Path) -> None:
    """Random (rows, batch limits, processes up to so many); their groups run when the first case is asked for."""

    @functools.cache
    def found() -> dict[int, dict[int, list[Any]]]:
        return _groups(records.seed, total, processes, work / "evaluation")

    records.run("evaluation", total, lambda number: _case(number, records.seed, processes, found()))


def _groups(seed: int, total: int, processes: int, folder: Path) -> dict[int, dict[int, list[Any]]]:
    """By number of processes and case: what each process got. One process has all cases, the others their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, model = real_rows(), cast(Any, real_task().model)
    np.save(folder / "input_ids.npy", rows.columns["input_ids"])
    np.save(folder / "offsets.npy", rows.offsets)
    np.save(folder / "embeddings.npy", model.get_input_embeddings().weight.detach().numpy())
    found = {}
    for world in range(1, processes + 1):
        arguments = [str(folder), str(seed), str(total), str(processes)]
        group = forks().start(arguments, Path.cwd(), os.environ | {"HF_HUB_OFFLINE": "1"}, world, __name__)
        for done in group.wait_all(PATIENCE_S):
            if done.returncode:
                raise RuntimeError(f"{world} processes: {done.stderr[-3000:]}")
        by_rank = [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]
        found[world] = {int(number): [own[number] for own in by_rank] for number in by_rank[0]}
    return found


def _case(number: int, seed: int, processes: int, found: dict[int, dict[int, list[Any]]]) -> Outcome:
    world, rows, _, _ = _drawn(number, seed, processes, real_rows())
    what = f"{len(rows)} rows, {world} processes"
    alone, own = found[1][number][0], found[world][number]
    for rank, got in enumerate(own):
        if any(got[name] != alone[name] for name in ("outputs", "quick", "metrics")):
            return Outcome("other", f"{what}: process {rank} has other outputs or metrics than one process alone")
    if alone["places"] != list(range(len(rows))):
        return Outcome("other", f"{what}: outputs in other places")
    # Rows that take part once more, so that all processes have equally many batches, come one a batch.
    computed = Counter(row for got in own for row in got["computed"])
    again = sum(computed.values()) - len(rows)
    if set(computed) != set(range(len(rows))) or again > world - 1:
        return Outcome("other", f"{what}: computed {again} rows too many, or not every row")
    return Outcome(f"by {world}: each row once, outputs and metrics equal")


def _drawn(number: int, seed: int, processes: int, of: TokenRows) -> tuple[int, TokenRows, int, int]:
    """Processes, rows, and the limits of a batch: rows and padded tokens."""
    rng = random.Random(f"evaluation {seed} {number}")
    # Few rows are where some processes have none.
    rows = some_rows(of, rng, rng.choice([rng.randint(1, 8), rng.randint(1, 120)]))
    return rng.choice(range(1, processes + 1)), rows, rng.randint(1, 32), rng.randint(16, 1024)


class Model(torch.nn.Module):
    """The real encoder's embeddings, averaged, and a classifier of them."""

    def __init__(self, embeddings_VD: torch.Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = torch.nn.Embedding.from_pretrained(embeddings_VD)
        self.head = torch.nn.Linear(embeddings_VD.shape[1], CLASSES)
        self.seen: list[int] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen += batch["labels"].tolist()
        mean_RD = mean_pooled(self.embeddings(batch["input_ids"]), batch["attention_mask"])
        probabilities_RC = self.head(20 * mean_RD).softmax(-1)
        return torch.cat([probabilities_RC, batch["labels"].unsqueeze(1).float()], dim=1)  # and the row's place


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return pad_tokens(rows, 0)


def main(arguments: Sequence[str]) -> int:
    """In each process of a group: its cases, and a file of what it got."""
    from finetune.launch import make_accelerator

    folder, (seed, total, processes) = Path(arguments[0]), map(int, arguments[1:])
    torch.set_num_threads(1)
    accelerator = make_accelerator("fp32", [])
    ids, offsets, embeddings = (np.load(folder / f"{name}.npy") for name in ("input_ids", "offsets", "embeddings"))
    of = TokenRows({"input_ids": ids}, offsets, np.zeros(len(offsets) - 1, bool))
    model, found = Model(torch.tensor(embeddings)), {}
    for number in range(total):
        world, rows, max_rows, max_tokens = _drawn(number, seed, processes, of)
        if accelerator.num_processes not in (1, world):
            continue
        model.seen = []
        with mock.patch.multiple(predict, MAX_ROWS=max_rows, CPU_TOKENS=max_tokens):
            got = predict_rows(model, rows, _collate, lambda some, batch: some(batch), accelerator, "valid")
        probabilities = got[:, :CLASSES]
        labels = np.array([random.Random(row).randrange(CLASSES) for row in range(len(rows))])
        judge = ClassificationJudge({"valid": labels}, ("a", "b", "c"), 0)
        few = number % 10 == 0  # the intervals are a thousand resamples
        found[number] = {
            "outputs": probabilities.tobytes().hex(),
            "places": got[:, CLASSES].astype(int).tolist(),
            "computed": model.seen,
            "quick": judge.quick("valid", probabilities),
            "metrics": judge.judge("valid", probabilities)["metrics"] if few else {},
        }
    write_json(folder / f"{accelerator.num_processes}-{accelerator.process_index}.json", found)
    accelerator.end_training()
    return 0
