"""Training image classifiers: loss of smoothed and blended targets by hand; statistics that stay when frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from finetune.checkpoint import Checkpoints
from finetune.data.batching import RowKey
from finetune.experiment import build_trainer
from finetune.history import History, read_history
from finetune.image_classification import wants_channels_last
from finetune.recipe import LoadedRecipe, load_recipe, override
from finetune.trainer import Trainer

pytestmark = pytest.mark.equivalence


def recipe(*overrides: str) -> LoadedRecipe:
    loaded = load_recipe("resnet_img")
    override(loaded, ["objective.baselines=false", "train.batch_size=8", "train.max_updates=3", *overrides])
    return loaded


@pytest.mark.parametrize("blended", [False, True])
def test_the_loss_of_smoothed_and_blended_targets_is_the_one_by_hand(blended: bool) -> None:
    share = 0.2
    ways = ["objective.augment.mixup=0.4", "objective.augment.cutmix=1.0"] if blended else []
    task = recipe(f"objective.label_smoothing={share}", *ways).build()
    batch = task.collate(task.rows["train"].__getitems__([RowKey(0, index) for index in range(12)]))
    assert ("targets" in batch) == blended
    model = task.model.eval()
    targets_BC = batch["targets"] if blended else torch.eye(10)[batch["labels"]]
    assert blended == bool(((targets_BC > 0) & (targets_BC < 1)).any())
    with torch.inference_mode():
        log_BC = model(batch["pixel_values"]).logits.double().log_softmax(-1)
        by_hand = -((targets_BC * (1 - share) + share / 10) * log_BC).sum()
        assert float(task.loss_sum(model, batch)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(task.count(batch)) == 12


def trained(folder: Path, *overrides: str) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """A trainer after three updates, and the statistics that it began with."""
    loaded = recipe(*overrides)
    task = loaded.build()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items() if "running_" in name}
    trainer = build_trainer(loaded, task, Accelerator(cpu=True, mixed_precision="no"))
    trainer.history, trainer.checkpoints = History(folder / "history.jsonl"), Checkpoints(folder / "c", 1, print)
    trainer.fit()
    return trainer, before


@pytest.mark.parametrize(
    ("overrides", "still"),
    [
        (["adapter=frozen"], ("",)),
        # Layers of a ResNet are its stages; the stem lies below them.
        (["adapter=layers", "adapter.freeze_below=2"], ("embedder", "stages.0", "stages.1")),
        (["adapter=full"], ()),
    ],
)
def test_statistics_of_batch_norm_stay_with_frozen_weights(
    overrides: list[str], still: tuple[str, ...], tmp_path: Path
) -> None:
    trainer, before = trained(tmp_path, *overrides)
    after = trainer.model.state_dict()
    assert len(before) > 30
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == any(part in name for part in still), name


def test_channels_last_changes_nothing_but_rounding(tmp_path: Path) -> None:
    found = {}
    for setting in ("true", "false"):
        folder = tmp_path / setting
        folder.mkdir()
        # SGD, whose updates are as large as the gradient: Adam's first ones have the size of the rate, of rounding too.
        settings = ("train.optimizer=sgd", "train.lr=0.02", "train.lr_warmup_updates=0")
        trainer, _ = trained(folder, f"model.channels_last={setting}", *settings)
        batch = trainer.task.collate(trainer.task.rows["train"].__getitems__([RowKey(0, 0), RowKey(0, 1)]))
        assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last) == (setting == "true")
        # As every checkpoint and every exported model has them.
        assert all(parameter.is_contiguous() for parameter in trainer.model.parameters())
        losses = [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]
        found[setting] = losses, dict(trainer.model.named_parameters())
    assert found["true"][0] == pytest.approx(found["false"][0], rel=1e-4)
    for name, parameter in found["true"][1].items():
        assert float((parameter - found["false"][1][name]).detach().abs().max()) < 1e-5, name


def test_channels_last_goes_by_the_precision() -> None:
    assert not wants_channels_last(recipe().recipe)
    assert wants_channels_last(recipe("train.precision=bf16").recipe)
    assert wants_channels_last(recipe("model.channels_last=true").recipe)
    assert not wants_channels_last(recipe("train.precision=bf16", "model.channels_last=false").recipe)
