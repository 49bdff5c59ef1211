"""Adapters on a ResNet, whose head is one of several modules: what is saved is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from finetune.checkpoint import Checkpoints
from finetune.experiment import build_trainer
from finetune.export import export, refuse_unequal
from finetune.history import History
from finetune.recipe import load_recipe, override

pytestmark = pytest.mark.equivalence

ADAPTERS = {
    "loha": ("adapter=peft", "adapter.config_class=LoHaConfig", 'adapter.settings={"r": 2}', "train.lr=1e-2"),
    "unfreezing": ("adapter=layers", "adapter.unfreeze_every_updates=1", "train.lr=1e-2"),
}


@pytest.mark.parametrize("adapter", list(ADAPTERS.values()), ids=list(ADAPTERS))
def test_what_is_saved_is_what_was_trained(tmp_path: Path, adapter: tuple[str, ...]) -> None:
    loaded = load_recipe("resnet_img")
    settings = ["train.threads=1", "train.precision=fp32", "objective.baselines=false", "train.max_updates=6"]
    override(loaded, [*settings, *adapter])
    trainer = build_trainer(loaded, loaded.build(), Accelerator(cpu=True, mixed_precision="no"))
    trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", 1, print)
    trainer.history = History(tmp_path / "history.jsonl")
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.fit()
    moved = [name for name, value in start.items() if not torch.equal(value, trainer.model.get_parameter(name))]
    assert len(moved) > 0.9 * len(start)
    check = export(trainer.task, trainer, tmp_path)["export_check"]
    refuse_unequal(check)
    assert check["parts"]["model"]["difference"] <= 1e-5
