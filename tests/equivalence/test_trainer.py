"""The loop's numbers equal plain PyTorch's and transformers' Trainer's, and don't depend on how rows are held."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from finetune.data.batching import RowKey
from finetune.history import read_history
from finetune.kernels import Kernels
from tests.trainers import make_trainer

pytestmark = pytest.mark.equivalence


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    others = dict(other.named_parameters())
    with torch.no_grad():
        return max(float((value - others[name]).abs().max()) for name, value in one.named_parameters())


# AdamW's first step is as long for a gradient of next to nothing as for any other, so rounding that is another, as in a
# last layer of one token, shows there.
@pytest.mark.parametrize(("skip_unread", "nearest"), [("false", 1e-6), ("true", 5e-5)])
def test_one_update_equals_plain_pytorch(skip_unread: str, nearest: float, tmp_path: Path) -> None:
    settings = ("train.max_updates=1", "train.lr_warmup_updates=0", "train.lr=1e-3")
    trainer = make_trainer(tmp_path, *settings, f"train.skip_unread={skip_unread}")
    model = copy.deepcopy(trainer.model)
    keys = next(trainer.plan.updates())
    rows = trainer.task.rows["train"].__getitems__(keys)

    # Written out by hand: nothing of the toolkit below but the rows themselves.
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for position, row in enumerate(rows):
        tokens = torch.tensor(row["input_ids"], dtype=torch.long)
        ids[position, : len(tokens)], mask[position, : len(tokens)] = tokens, 1
    labels = torch.tensor([int(row["labels"]) for row in rows])
    decay = [value for name, value in model.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    plain = [value for name, value in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    model.train()
    loss = F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

    trainer.fit()

    line = read_history(tmp_path / "history.jsonl")[0]
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert largest_difference(trainer.model, model) < nearest


def test_ten_updates_equal_transformers_trainer(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    # 136 rows are 17 whole updates: the peer would take rows of the next update to fill a short one.
    settings = ("train.max_updates=10", "train.lr_warmup_updates=3", "train.lr=1e-4", "data.max_train_rows=136")
    trainer = make_trainer(tmp_path, *settings)
    task = trainer.task
    order = [key for keys in trainer.plan.updates() for key in keys]
    model = copy.deepcopy(trainer.model)
    logged: list[float] = []

    class InOrder(Trainer):
        """Takes the rows as they come, and notes each update's loss unrounded."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            logged.append(loss.item())
            return loss

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "peer"),
        per_device_train_batch_size=8,
        max_steps=10,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        warmup_steps=3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    InOrder(
        model=model, args=arguments, train_dataset=[task.rows["train"].__getitems__([key])[0] for key in order],
        data_collator=task.collate,
    ).train()  # fmt: skip

    trainer.fit()

    ours = losses(tmp_path)
    assert len(ours) == len(logged) == 10
    assert max(abs(a - b) for a, b in zip(ours, logged, strict=True)) < 1e-6
    assert largest_difference(trainer.model, model) < 1e-5


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_micro_batch_changes_no_result(tmp_path: Path, micro: int) -> None:
    settings = ("train.max_updates=4", "data.max_train_rows=30", "objective.class_weights=balanced")
    whole = make_trainer(tmp_path / "whole", *settings)
    whole.fit()
    parts = make_trainer(tmp_path / "parts", *settings, f"train.micro_batch_size={micro}")
    parts.fit()
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


def test_dropout_is_a_function_of_the_update_and_not_of_what_ran_before(tmp_path: Path) -> None:
    """With dropout on, the third update alone has the loss that it has after two others (learning rate almost 0)."""
    settings = ("model.dropout=0.3", "train.lr=1e-12", "train.lr_schedule=constant", "train.max_updates=3")
    make_run = make_trainer(tmp_path / "all", *settings)
    make_run.fit()
    alone = make_trainer(tmp_path / "one", *settings)
    alone.plan = copy.copy(alone.plan)
    keys = list(alone.plan.updates())[2]
    alone.adapter.train_mode(alone.model)
    from finetune.randomness import seed_torch

    torch.rand(7)
    seed_torch(0, "dropout", 2, 0)
    batch = alone.task.collate(alone.task.rows["train"].__getitems__(keys))
    with Kernels(torch.device("cpu"), alone.settings).used(alone.model):
        loss = alone.task.loss_sum(alone.model, batch) / len(keys)
    assert losses(tmp_path / "all")[2] == pytest.approx(loss.item(), rel=1e-5)
    without = make_trainer(tmp_path / "none", *settings[1:])
    without.fit()
    assert abs(losses(tmp_path / "none")[2] - loss.item()) > 1e-4


def test_schedules_equal_transformers() -> None:
    from transformers import get_scheduler

    from finetune.optim import lr_factor

    for shape, name in (("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        peer = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
        for update in range(20):
            assert lr_factor(update, 20, 4, shape) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            peer.step()


def test_weighted_smoothed_loss_over_its_count_equals_pytorchs_mean() -> None:
    from finetune.objectives import balanced_class_weights, cross_entropy_sum, target_count

    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    weights = balanced_class_weights(torch.bincount(labels, minlength=4))
    ours = cross_entropy_sum(logits, labels, weights, 0.1) / target_count(labels, weights)
    assert ours.item() == pytest.approx(F.cross_entropy(logits, labels, weights, label_smoothing=0.1).item(), rel=1e-6)
    from sklearn.utils.class_weight import compute_class_weight

    peer = compute_class_weight("balanced", classes=np.arange(4), y=labels.numpy())
    assert torch.allclose(weights, torch.tensor(peer, dtype=torch.float32))


@pytest.mark.parametrize("adapter", ["full", "frozen"])
def test_resume_after_any_update_is_bit_identical(tmp_path: Path, adapter: str) -> None:
    """Dropout, accumulation and a short last group included."""
    settings = (
        "model.dropout=0.1", "train.max_updates=6", "train.micro_batch_size=3", "data.max_train_rows=30",
        "train.eval_every_updates=4", "train.keep_checkpoints=9", f"adapter={adapter}",
    )  # fmt: skip
    whole = make_trainer(tmp_path / "whole", *settings, "train.save_every_updates=1")
    whole.fit()
    for stop in range(1, 6):
        folder = tmp_path / f"stopped_{stop}"
        resumed = make_trainer(folder, *settings)
        for update in range(1, stop + 1):
            kept = whole.checkpoints.path(update), resumed.checkpoints.path(update)
            shutil.copytree(*kept, copy_function=os.link)
        shutil.copy(tmp_path / "whole" / "history.jsonl", folder)
        before, progress = resumed.fit(resume=True)
        assert (before.update, progress.update) == (stop, 6)
        assert largest_difference(resumed.model, whole.model) == 0.0
        assert (folder / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()
        ours, theirs = resumed.checkpoints.read(6)[0], whole.checkpoints.read(6)[0]
        for name, tensor in theirs.tensors["optimizer"].items():
            assert torch.equal(ours.tensors["optimizer"][name], tensor), name


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_applied(tmp_path: Path) -> None:
    from finetune.errors import TrainingError

    trainer = make_trainer(tmp_path, "train.max_updates=3", "train.save_every_updates=1")
    plain = trainer.task.loss_sum
    calls = []

    def broken(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return plain(model, batch) * (math.nan if len(calls) == 2 else 1.0)

    trainer.task.loss_sum = broken
    with pytest.raises(TrainingError, match=r"Update 2 has loss nan") as caught:
        trainer.fit()
    rows = [key.index for key in list(trainer.plan.updates())[1]]
    assert "nonfinite.json" in str(caught.value)
    kept = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (kept["update"], kept["loss"], kept["rows"]) == (2, "nan", rows)
    assert kept["ids"] == [trainer.task.data.splits["train"]["id"][row] for row in rows]
    assert trainer.checkpoints.updates() == [1]
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_weight_that_is_not_finite_gets_into_no_checkpoint(tmp_path: Path, value: float) -> None:
    """One that no loss depends on: the row of a token that no text has."""
    from finetune.errors import TrainingError

    trainer = make_trainer(tmp_path, "train.max_updates=3", "train.save_every_updates=1", "train.keep_checkpoints=1")
    vocabulary, after_step = trainer.model.get_input_embeddings().weight, trainer.adapter.after_step

    def broken(model: torch.nn.Module, update: int) -> None:
        after_step(model, update)
        if update == 2:
            with torch.no_grad():
                vocabulary[5, 0] = value  # an unused one

    object.__setattr__(trainer.adapter, "after_step", broken)
    with pytest.raises(TrainingError, match=r"word_embeddings\.weight is not finite after update 2"):
        trainer.fit()
    rows = [key.index for key in list(trainer.plan.updates())[1]]
    assert json.loads((tmp_path / "nonfinite.json").read_text())["rows"] == rows
    assert trainer.checkpoints.updates() == [1]
    assert all(torch.isfinite(tensor).all() for tensor in trainer.checkpoints.read(1)[0].tensors["model"].values())


def test_every_row_is_predicted_once_in_its_own_place(tmp_path: Path) -> None:
    from finetune.evaluation.predict import predict_rows

    trainer = make_trainer(tmp_path, "train.max_updates=1")
    task, rows = trainer.task, trainer.task.rows["valid"]
    together = predict_rows(trainer.model, rows, task.collate, task.outputs, trainer.accelerator, "valid")
    assert together.shape == (len(rows), 2)
    with torch.inference_mode():
        for index in (0, 7, len(rows) - 1):
            alone = task.outputs(trainer.model, task.collate(rows.__getitems__([RowKey(0, index)])))
            assert torch.allclose(torch.tensor(together[index]), alone[0], atol=1e-5)


def test_activation_checkpointing_changes_no_number(tmp_path: Path) -> None:
    """Dropout included: the recomputed forward pass must draw the same masks."""
    settings = ("model.dropout=0.2", "train.max_updates=3")
    plain = make_trainer(tmp_path / "plain", *settings)
    plain.fit()
    recomputed = make_trainer(tmp_path / "recomputed", *settings, "train.activation_checkpointing=true")
    assert recomputed.model.is_activation_checkpointing
    recomputed.fit()
    assert losses(tmp_path / "recomputed") == losses(tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # beside another on two cores
def test_loader_workers_change_no_number(tmp_path: Path) -> None:
    settings = ("model.dropout=0.2", "train.max_updates=4", "train.micro_batch_size=3", "adapter=frozen")
    settings += ("train.save_every_updates=1", "train.keep_checkpoints=9")
    inside = make_trainer(tmp_path / "inside", *settings)
    inside.fit()
    make_trainer(tmp_path / "beside", *settings, "train.workers=2").fit()
    assert losses(tmp_path / "beside") == losses(tmp_path / "inside")
    resumed = make_trainer(tmp_path / "resumed", *settings, "train.workers=2")
    shutil.copytree(inside.checkpoints.path(2), resumed.checkpoints.path(2))
    shutil.copy(tmp_path / "inside" / "history.jsonl", tmp_path / "resumed")
    resumed.fit(resume=True)
    assert largest_difference(resumed.model, inside.model) == 0.0
    assert (tmp_path / "resumed" / "history.jsonl").read_bytes() == (tmp_path / "inside/history.jsonl").read_bytes()


def test_a_frozen_encoder_stays_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, "adapter=frozen", "train.max_updates=2", "train.lr=1e-2", "train.lr_warmup_updates=0"
    )
    before = copy.deepcopy(trainer.model)
    trainer.fit()
    after = dict(trainer.model.named_parameters())
    changed = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_early_stopping_leaves_the_best_weights_in_the_model(tmp_path: Path) -> None:
    from finetune.evaluation.predict import predict_rows

    trainer = make_trainer(
        tmp_path, "train.eval_every_updates=1", "train.early_stop_evals=2", "train.max_updates=12", "train.lr=1e-3"
    )
    task, judge = trainer.task, trainer.task.judge
    scores = iter([0.5, 0.9, 0.9, 0.2, 1.0])
    plain = judge.quick
    judge.quick = lambda split, outputs: {**plain(split, outputs), "accuracy": next(scores)}
    _, progress = trainer.fit()
    # Update 2 is the best; 3 only equals it, and 4 is the second evaluation without a gain.
    assert (progress.update, progress.best_update, progress.stopped_early) == (4, 2, True)
    assert trainer.checkpoints.updates() == [4, 2]
    best = trainer.checkpoints.read(2)[0].tensors["model"]
    assert all(torch.equal(value.detach(), best[name]) for name, value in trainer.model.named_parameters())
    judge.quick = plain
    outputs = predict_rows(trainer.model, task.rows["valid"], task.collate, task.outputs, trainer.accelerator, "valid")
    logged = [line for line in read_history(tmp_path / "history.jsonl") if "valid" in line]
    assert judge.quick("valid", outputs)["loss"] == pytest.approx(logged[1]["valid"]["loss"], rel=1e-6)
