"""Stopped and resumed with other numbers of processes: the same rows in the same order, each once an epoch.

And in elastic mode the same weights, by real runs of 1, 2 and 4 processes.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.batching import BatchPlan
from finetune.data.tokens import TokenRows
from finetune.data.updates import Update, load_updates
from finetune.files import sha256_file
from finetune.recipe import load_recipe
from finetune.task import Task
from tests.forks import forks
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records

ADAPTERS = ("lora", "full", "adalora")
ELASTIC = (
    "train.deterministic=elastic", "train.max_updates=4", "train.save_every_updates=1", "train.keep_checkpoints=9",
    "train.batch_size=22",  # 4 shards: 2 processes have two each; a third process would have an empty one
    "train.lr=1e-3", "data.max_tokens=24", "objective.baselines=false",
)  # fmt: skip
PATIENCE_S = 200.0


def run(records: Records, orders: int, elastic: int, work: Path) -> None:
    """Random (rows, batch, processes, stops), and adapters in elastic mode."""
    records.run("order", orders, lambda number: _order(number, records.seed))
    if elastic:
        reviews = stores.real_checkpoints(work).parent / "reviews.csv"
        records.run("elastic", elastic, lambda number: _elastic(ADAPTERS[number % len(ADAPTERS)], reviews, work))


@functools.cache
def real_task() -> Task:
    """bert_cls on movie_snippets: real rows, and what makes batches of them."""
    return load_recipe("bert_cls").build()


def real_rows() -> TokenRows:
    """All training rows."""
    rows = real_task().rows["train"]
    assert isinstance(rows, TokenRows)
    return rows


def some_rows(rows: TokenRows, rng: random.Random, count: int) -> TokenRows:
    """Rows drawn at random; the label of each is its place, so that a batch says which it holds."""
    chosen = rng.sample(range(len(rows)), count)
    parts = [slice(int(rows.offsets[row]), int(rows.offsets[row + 1])) for row in chosen]
    columns = {name: np.concatenate([values[part] for part in parts]) for name, values in rows.columns.items()}
    offsets = np.concatenate([[0], np.cumsum([part.stop - part.start for part in parts])])
    return TokenRows(columns, offsets, rows.truncated[chosen], np.arange(count))


def _order(number: int, seed: int) -> Outcome:
    rng = random.Random(f"order {seed} {number}")
    rows = some_rows(real_rows(), rng, rng.randint(1, 160))
    batch, epochs = rng.randint(1, 48), rng.choice([1, 2, 2.5])
    plan = BatchPlan(len(rows), rng.choice([rows.lengths, None]), batch, epochs, rng.randrange(1000))
    micro, fixed = rng.choice(["auto", 1, 3, 8]), rng.random() < 0.3
    stops = sorted(rng.sample(range(plan.total_updates + 1), min(plan.total_updates, rng.randint(1, 3))))
    worlds = [rng.randint(1, 8) for _ in range(len(stops) + 1)]
    what = f"{len(rows)} rows, {batch} an update, {epochs} epochs, stops {stops}, processes {worlds}, fixed {fixed}"
    found: list[list[int]] = []
    for first, last, world in zip([0, *stops], [*stops, plan.total_updates], worlds, strict=True):
        by_rank = []
        for rank in range(world):
            updates = load_updates(
                plan, rows, real_task().collate, first_update=first, micro_batch_size=micro, rank=rank, world=world,
                fixed=fixed,
            )  # fmt: skip
            by_rank.append(list(itertools.islice(updates, last - first)))
        for together in zip(*by_rank, strict=True):
            if problem := _wrong_batch(together, rows):
                return Outcome("order", f"{what}: {problem}")
            found.append(_rows_of(together))
    # One process that was never stopped, and asked for nothing but the plan.
    if found != [[key.index for key in keys] for keys in plan.updates()]:
        return Outcome("order", f"{what}: another order")
    for epoch in range(int(epochs)):
        seen = Counter(
            row for update in found[epoch * plan.updates_per_epoch :][: plan.updates_per_epoch] for row in update
        )
        if seen != Counter(range(len(rows))):
            return Outcome("order", f"{what}: not each row once in epoch {epoch}")
    return Outcome("same order, each row once an epoch")


def _rows_of(together: Sequence[Update]) -> list[int]:
    """Of one update over all processes, in the order of its shards."""
    shards = [micro for update in together for micro in update.micro_batches if not micro.is_empty]
    return [row for shard in sorted(shards, key=lambda shard: shard.number) for row in shard.rows]


def _wrong_batch(together: Sequence[Update], rows: TokenRows) -> str:
    """Empty, or how a batch holds something else than the rows that it names, or processes don't go in step."""
    if len({len(update.micro_batches) for update in together}) != 1:
        return "processes with unequally many micro-batches"
    for micro in (micro for update in together for micro in update.micro_batches if not micro.is_empty):
        tokens, mask = micro.batch["input_ids"].numpy(), micro.batch["attention_mask"].numpy().astype(bool)
        if micro.batch["labels"].tolist() != list(micro.rows):
            return f"a batch of rows {micro.rows} has the labels {micro.batch['labels'].tolist()}"
        for place, row in enumerate(micro.rows):
            own = rows.columns["input_ids"][rows.offsets[row] : rows.offsets[row + 1]]
            if not np.array_equal(tokens[place][mask[place]], own):
                return f"row {row} has other tokens in its batch"
    return ""


def _elastic(adapter: str, reviews: Path, work: Path) -> Outcome:
    """1, 2 and 4 processes, and 1, then 2, then 1 again."""
    into = work / f"elastic-{adapter}"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    if problem := make_elastic_runs(adapter, reviews, into):
        return Outcome(adapter, f"{adapter}: {problem}")
    alone = elastic_bits(into / "1")
    different = [name for name in ("2", "4", "moved") if elastic_bits(into / name) != alone]
    if different:
        return Outcome(adapter, f"{adapter}: other bits than 1 process: {different}; kept in {into}")
    shutil.rmtree(into)
    return Outcome(f"{adapter}: 1, 2, 4 processes and 1 to 2 to 1 are identical")


def make_elastic_runs(adapter: str, reviews: Path, into: Path) -> str:
    """`into`/1, 2 and 4 by so many processes, and `moved` by 1, 2 and 1; returns what went wrong."""
    flags = ["bert_cls", "--adapter", adapter, "--data", str(reviews)]
    flags += [word for setting in ELASTIC for word in ("--set", setting)]
    for world in (1, 2, 4):
        if problem := _run([*flags, "--output", str(into / str(world))], world):
            return problem
    shutil.copytree(into / "1", into / "moved")
    for update, world in ((1, 2), (3, 1)):
        _cut_back(into / "moved", update)
        if problem := _run(["--resume", str(into / "moved")], world):
            return problem
    return ""


def elastic_bits(folder: Path) -> tuple[str, ...]:
    """Of the exported weights, the optimizer's last state and the log of every update and evaluation."""
    last = folder / "checkpoints" / "update_00000004"
    files = (folder / "model" / "model.safetensors", last / "optimizer.safetensors", folder / "history.jsonl")
    return tuple(map(sha256_file, files))


def _run(arguments: list[str], world: int) -> str:
    command = forks().start(["run", *arguments], Path.cwd(), os.environ | {"HF_HUB_OFFLINE": "1"}, world)
    for rank, done in enumerate(command.wait_all(PATIENCE_S)):
        if done.returncode:
            return f"process {rank} of {world} ended with {done.returncode}: {done.stderr[-1500:]}"
        if rank == 0 and f"{world} process(es)" not in done.stdout:
            return f"not {world} processes: {done.stdout[-500:]}"
    return ""


def _cut_back(folder: Path, update: int) -> None:
    """As if the run had been killed after that update."""
    for checkpoint in (folder / "checkpoints").glob("update_*"):
        if int(checkpoint.name.removeprefix("update_")) > update:
            shutil.rmtree(checkpoint)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    shutil.rmtree(folder / "model")
