"""Gradual unfreezing: equal to a plain PyTorch loop, and resumed to the bit across a change."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from finetune.adapters import Layers
from finetune.history import read_history
from tests.trainers import make_trainer

pytestmark = pytest.mark.equivalence

UPDATES = 10
# Of MiniLM's six layers the upper three: four parts, the last of which is trained from the seventh update on.
GRADUAL = (
    "adapter=layers", "adapter.unfreeze_every_updates=2", "adapter.freeze_below=3", "train.lr=1e-3",
    f"train.max_updates={UPDATES}", "train.weight_decay=0.1",
)  # fmt: skip
HEAD = 384 * 2 + 2
POOLER = 384 * 384 + 384
LAYER = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 2 * 2 * 384


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]


def test_what_is_trained_by_update_equals_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop gives a layer to its optimizer only when it is unfrozen."""
    plain = ("train.lr_schedule=constant", "train.lr_warmup_updates=0", "train.eval_every_updates=10")
    trainer = make_trainer(tmp_path, *GRADUAL, *plain)
    peer = copy.deepcopy(trainer.model).requires_grad_(False)
    start = copy.deepcopy(peer.state_dict())
    rows = trainer.task.rows["train"]
    counts, moved = [], []
    after_step = Layers.after_step

    def noted(self: Layers, model: Any, update: int) -> None:
        after_step(self, model, update)
        counts.append(sum(some.numel() for some in model.parameters() if some.grad is not None))
        moved.append({name for name, value in model.state_dict().items() if not torch.equal(value, start[name])})

    monkeypatch.setattr(Layers, "after_step", noted)
    trainer.fit()

    parts = [["pooler", "classifier"], ["layer.5."], ["layer.4."], ["layer.3."]]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    trained: list[torch.nn.Parameter] = []
    for number, keys in enumerate(trainer.plan.updates()):
        if number % 2 == 0 and number // 2 < len(parts):
            for name, value in peer.named_parameters():
                if any(part in name for part in parts[number // 2]):
                    value.requires_grad_(True)
                    trained.append(value)
                    optimizer.add_param_group({"params": [value], "weight_decay": 0.1 if value.ndim > 1 else 0.0})
        batch = trainer.task.collate(rows.__getitems__(keys))
        F.cross_entropy(trainer.task.logits(peer, batch), batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected = {name for part in parts[: number // 2 + 1] for name in start if any(some in name for some in part)}
        assert moved[number] == expected, f"update {number + 1}"
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        differences = torch.cat([(value - theirs[name]).flatten() for name, value in trainer.model.named_parameters()])
    # Adam makes much of gradients that are almost 0, in a few weights; each step is 1e-3 in nearly all of them.
    assert float(differences.abs().mean()) < 1e-7
    assert float(differences.abs().max()) < 3e-4
    expected_counts = [HEAD + POOLER + min(update // 2, 3) * LAYER for update in range(UPDATES)]
    assert counts == expected_counts


def test_resume_is_bit_identical_at_and_between_changes(tmp_path: Path) -> None:
    """Stopped before a change, right at one, after one, and at the last; with dropout and accumulation."""
    settings = (
        *GRADUAL, "model.dropout=0.1", "train.micro_batch_size=3", "train.eval_every_updates=5",
        "train.keep_checkpoints=12", "train.save_every_updates=1",
    )  # fmt: skip
    whole = make_trainer(tmp_path / "whole", *settings)
    whole.fit()
    expected = whole.checkpoints.read(UPDATES)[0]
    for stop in (1, 2, 3, 6):
        folder = tmp_path / f"stopped_{stop}"
        torch.rand(stop)  # whatever random numbers were drawn before must not matter
        resumed = make_trainer(folder, *settings)
        for update in range(1, stop + 1):
            shutil.copytree(whole.checkpoints.path(update), resumed.checkpoints.path(update))
        shutil.copy(tmp_path / "whole" / "history.jsonl", folder)
        before, progress = resumed.fit(resume=True)
        assert (before.update, progress.update) == (stop, UPDATES)
        found = resumed.checkpoints.read(UPDATES)[0]
        assert found.numbers == expected.numbers
        for stem, tensors in expected.tensors.items():
            assert set(found.tensors[stem]) == set(tensors)
            for name, tensor in tensors.items():
                assert torch.equal(found.tensors[stem][name], tensor), (stop, stem, name)
        assert (folder / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()


def test_the_best_weights_of_before_a_change_come_back_whole(tmp_path: Path) -> None:
    """What was unfrozen after the best evaluation is put back too."""
    settings = (*GRADUAL, "train.eval_every_updates=2", "train.keep_checkpoints=9", "train.save_every_updates=1")
    trainer = make_trainer(tmp_path, *settings)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    judge: Any = trainer.task.judge
    scores, plain = iter([0.5, 0.4, 0.4, 0.4, 0.4]), judge.quick
    judge.quick = lambda split, outputs: {**plain(split, outputs), judge.best_metric: next(scores)}
    _, progress = trainer.fit()
    assert (progress.update, progress.best_update) == (UPDATES, 2)
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all("pooler" in name or "classifier" in name for name in moved)
