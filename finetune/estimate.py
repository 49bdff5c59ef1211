"""`finetune plan`: counts that are exact, and time and memory from a few timed batches."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, cast

import numpy as np
import psutil
import torch

from finetune.data.batching import BatchPlan, RowKey
from finetune.data.updates import load_updates
from finetune.evaluation.predict import planned_batches, predict_rows, to_device
from finetune.hardware import peak_rss_mb
from finetune.kernels import Kernels
from finetune.state import capture
from finetune.task import SomeRows

if TYPE_CHECKING:
    from finetune.options import RunOptions
    from finetune.trainer import Trainer

WARM_UP_UPDATES, TIMED_UPDATES = 2, 8
# Tokens of an evaluation batch that is timed: long rows would take many seconds, and the rate is the same.
TIMED_TOKENS = 2048
# For updates of shapes that were not met before: what libraries keep for each decides the memory.
SHAPES_S = 10.0


def print_plan(options: RunOptions) -> int:
    """Print what a run would do and cost; trains nothing and writes no run folder."""
    from finetune.absent_tokens import skips_absent_tokens, without_absent_tokens
    from finetune.experiment import build_trainer, open_run
    from finetune.frozen_features import reuses_features
    from finetune.frozen_layers import reused_layers, reuses_layers, seconds_of_a_token

    loaded, accelerator, precision, threads = open_run(options)
    task = loaded.build()
    trainer = build_trainer(loaded, task, accelerator)
    plan, lengths, settings = trainer.plan, task.rows["train"].lengths, trainer.settings
    parameters = [(some.numel(), some.requires_grad) for some in trainer.model.parameters()]
    total, trainable = sum(count for count, _ in parameters), sum(count for count, trained in parameters if trained)
    lines = [
        ("recipe", f"{loaded.name} ({loaded.origin})"),
        ("data", f"{task.data.name}: {', '.join(f'{name} {len(rows):,}' for name, rows in task.rows.items())} rows"),
        ("model", task.files.name.partition("#")[0]),
        ("parameters", f"{total:,}, of which {trainable:,} ({trainable / total:.2%}) are trained"),
        ("updates", f"{plan.total_updates:,} of {settings.batch_size} rows ({plan.updates_per_epoch:,} an epoch)"),
        ("computes in", f"{precision}, {threads} threads, on {accelerator.device}"),
    ]
    if task.data.labels:
        lines.insert(2, ("labels", f"{len(task.data.labels)}: {', '.join(task.data.labels[:10])}"))
    once, kernels = reuses_features(trainer), Kernels(accelerator.device, settings)
    faster = [] if once else kernels.in_use(trainer.model, precision != "fp32", task.kind == "text-generation")
    if lengths is not None:
        with_buckets, without = (_padding(plan, lengths if yes else None, lengths) for yes in (True, False))
        padding = f"{with_buckets:.1%} of the tokens computed ({without:.1%} without length buckets)"
        lines.append(("padding", "left out of the encoder" if "train.skip_padding" in faster else padding))
    lines += [("note", note) for note in (*task.data.notes, *task.notes)]
    faster += ["train.skip_absent_tokens"] if skips_absent_tokens(trainer) else []
    faster += ["adapter.reuse_features"] if (below := reuses_layers(trainer)) else []
    faster += ["train.skip_unread"] if once and kernels.reads_first_token(trainer.model) else []
    faster += ["train.keep_outputs"] if settings.keep_outputs and (once or below) else []
    faster += ["train.length_buckets"] if lengths is not None and settings.length_buckets else []
    if faster:
        lines.append(("faster by", f"{', '.join(faster)}; =false switches one off"))
    evaluations = sum(trainer.evaluation_due(update + 1) for update in range(plan.total_updates))
    below_s = 0.0
    with reused_layers(trainer, compute=False), without_absent_tokens(trainer):
        seconds_per_token, first_s = _timed_updates(trainer, kernels, shapes=not once)
        evaluation_s = 0.0 if once else evaluations * _evaluation_seconds(trainer)
    if below:
        tokens = sum(int(cast(np.ndarray, task.rows[name].lengths).sum()) for name in ("train", "valid"))
        below_s = tokens * seconds_of_a_token(trainer, time.monotonic)
        unless = ", unless an earlier run kept what they give" if settings.keep_outputs else ""
        lines.append(
            ("layers", f"frozen ones run once over the rows, about {_duration(below_s)} of the training{unless}")
        )
    updates = itertools.islice(plan.updates(), plan.updates_per_epoch if once else None)
    work = sum(_computed_tokens(keys, plan, lengths) for keys in updates)
    training = _duration(below_s + first_s + seconds_per_token * work)
    if once:
        lines.append(("encoder", "frozen: it runs once over the rows, and every epoch trains the head on its output"))
    evaluation = "on its kept output" if once else f"about {_duration(evaluation_s)}"
    _judge_largest_batches(trainer)
    memory_gib = peak_rss_mb() / 2**10 + _exported_bytes(trainer) / 2**30
    lines += [
        ("training", f"about {training}, from {TIMED_UPDATES} timed updates"),
        ("evaluation", f"{evaluation}, {evaluations} times on the {len(task.rows['valid']):,} validation rows"),
        ("memory", f"about {memory_gib:.1f} GiB of {psutil.virtual_memory().total / 2**30:.0f} GiB"),
    ]
    for name, text in lines:
        print(f"{name:<12}{text}")
    accelerator.end_training()
    return 0


def _padding(plan: BatchPlan, bucketed_by: np.ndarray | None, lengths: np.ndarray) -> float:
    """Share of an epoch's computed tokens that are padding."""
    epoch = BatchPlan(plan.rows, bucketed_by, plan.batch_size, 1.0, plan.seed)
    return 1.0 - float(lengths.sum()) / sum(_computed_tokens(keys, epoch, lengths) for keys in epoch.updates())


def _computed_tokens(keys: list[RowKey], plan: BatchPlan, lengths: np.ndarray | None) -> int:
    """Tokens of an update with its padding, group by group; rows where all rows cost the same."""
    return sum(rows * tokens for rows, tokens in _shapes(keys, plan, lengths))


def _shapes(keys: list[RowKey], plan: BatchPlan, lengths: np.ndarray | None) -> list[tuple[int, int]]:
    """Rows and padded length of each group of an update; of length 1 where rows have none."""
    if lengths is None:
        return [(len(keys), 1)]
    row_lengths = [int(lengths[key.index]) for key in keys]
    groups = [row_lengths[first : first + plan.group_rows] for first in range(0, len(keys), plan.group_rows)]
    return [(len(group), max(group)) for group in groups]


def _timed_updates(trainer: Trainer, kernels: Kernels, shapes: bool) -> tuple[float, float]:
    """Time of a computed token (or row) over some forward and backward passes and optimizer steps of rate 0, and what
    the first update takes beyond its tokens' time: kernels are chosen and memory is asked for.

    The update with the longest rows goes first, untimed: it decides the memory. So do updates with a shape of their
    own, which come after the timed ones, for some seconds: oneDNN keeps the kernels that it made for each, and freed
    buffers of many sizes leave gaps. bert_lora begins with 1.1 GiB, and after 200 updates has 1.9.

    Args:
        shapes: whether the run computes all those shapes.
    """
    from finetune.optim import build_optimizer, set_lr

    task, settings, accelerator = trainer.task, trainer.settings, trainer.accelerator
    lengths = task.rows["train"].lengths
    model = accelerator.prepare_model(trainer.model)
    optimizer = build_optimizer(trainer.model, settings)
    set_lr(optimizer, 0.0)
    updates = load_updates(
        trainer.plan,
        task.rows["train"],
        task.collate,
        first_update=0,
        micro_batch_size=settings.micro_batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    ahead = list(itertools.islice(trainer.plan.updates(), WARM_UP_UPDATES + TIMED_UPDATES))
    costs = [_computed_tokens(keys, trainer.plan, lengths) for keys in ahead]
    longest = max(
        itertools.islice(trainer.plan.updates(), trainer.plan.updates_per_epoch),
        key=lambda keys: _computed_tokens(keys, trainer.plan, lengths),
    )
    device = accelerator.device

    def compute(keys: list[RowKey]) -> float:
        started = time.monotonic()
        trainer.adapter.train_mode(model)
        update = updates.dataset[keys]
        with kernels.used(trainer.model):  # as the loop does it
            for micro in update.micro_batches:
                accelerator.backward(task.loss_sum(model, to_device(micro.batch, device)) / update.rows)
        accelerator.clip_grad_norm_(trainer.model.parameters(), settings.clip_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        return time.monotonic() - started

    seconds = [compute(keys) for keys in [longest, *ahead]]
    met = {shape for keys in [longest, *ahead] for shape in _shapes(keys, trainer.plan, lengths)}
    until = time.monotonic() + SHAPES_S
    for keys in trainer.plan.updates() if shapes and lengths is not None else ():
        if time.monotonic() > until:
            break
        if not met.issuperset(new := _shapes(keys, trainer.plan, lengths)):
            met.update(new)
            compute(keys)
    capture(model, optimizer, trainer.adapter.state(trainer.model))  # what a checkpoint copies is part of the memory
    timed = slice(-min(TIMED_UPDATES, len(ahead)), None)
    per_token = sum(seconds[timed]) / sum(costs[timed])
    return per_token, max(0.0, seconds[0] - per_token * _computed_tokens(longest, trainer.plan, lengths))


def _evaluation_seconds(trainer: Trainer) -> float:
    """Time of one evaluation, from a batch of typical rows; `trainer.model` computes in its precision by now."""
    task, rows, device = trainer.task, trainer.task.rows["valid"], trainer.accelerator.device
    lengths = rows.lengths
    batches = planned_batches(rows, task.collate, device)
    costs = [len(batch) * (1 if lengths is None else int(lengths[batch].max())) for batch in batches]
    typical = batches[len(batches) // 2]
    if lengths is not None:
        typical = typical[: max(1, TIMED_TOKENS // int(lengths[typical].max()))]
    cost = len(typical) * (1 if lengths is None else int(lengths[typical].max()))
    trainer.model.eval()
    with torch.inference_mode():
        for _ in range(2):  # the first is warm-up
            started = time.monotonic()
            batch = task.collate(rows.__getitems__([RowKey(0, int(row)) for row in typical]))
            task.outputs(trainer.model, to_device(batch, device))
    return (time.monotonic() - started) / cost * sum(costs)


def _judge_largest_batches(trainer: Trainer) -> None:
    """Of the validation rows in the run's precision, and of the test rows in fp32, as the exported model is judged: for
    the memory. In halves where there is not enough, as the run does it."""
    task, accelerator = trainer.task, trainer.accelerator

    def judge(model: torch.nn.Module, split: str) -> None:
        rows = task.rows[split]
        lengths = rows.lengths
        batches = planned_batches(rows, task.collate, accelerator.device)
        largest = max(batches, key=lambda some: len(some) * (1 if lengths is None else int(lengths[some].max())))
        predict_rows(model, SomeRows(rows, largest), task.collate, task.outputs, accelerator, split)

    judge(trainer.model, "valid")
    judge(accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), "test")


def _exported_bytes(trainer: Trainer) -> int:
    """What the check of the export holds beside the trained model: the one that it loads back, in fp32.

    Pages of its file take no freed memory's place, so this comes on top. Where an adapter is merged, the fp64 model
    that tells rounding from error may be the larger one; that it will be needed is not known before.
    """
    from finetune.adapters.peft_adapter import PeftAdapter

    width = 8 if isinstance(trainer.adapter, PeftAdapter) else 4
    return width * sum(parameter.numel() for parameter in trainer.model.parameters())


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
