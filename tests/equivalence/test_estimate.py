"""`finetune plan` computes what the run will: every shape of an update, and leaves the weights as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from finetune import estimate
from finetune.data.updates import load_updates
from finetune.estimate import _exported_bytes, _judge_largest_batches, _timed_updates
from finetune.kernels import Kernels
from tests.trainers import make_trainer

pytestmark = pytest.mark.equivalence


def test_every_shape_is_met_and_no_weight_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SHAPES_S", 600.0)  # however slow the machine is
    trainer = make_trainer(tmp_path, "train.epochs=2", "adapter=lora", "train.micro_batch_size=3")
    task, settings = trainer.task, trainer.settings
    expected = {
        tuple(micro.batch["input_ids"].shape)
        for update in load_updates(
            trainer.plan, task.rows["train"], task.collate, first_update=0,
            micro_batch_size=settings.micro_batch_size, rank=0, world=1,
        )
        for micro in update.micro_batches
    }  # fmt: skip
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    plain, met = task.loss_sum, []

    def noted(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        met.append(tuple(batch["input_ids"].shape))
        return plain(model, batch)

    task.loss_sum = noted
    kernels = Kernels(trainer.accelerator.device, settings)
    _timed_updates(trainer, kernels, shapes=False)
    timed = set(met)
    met.clear()
    _timed_updates(trainer, kernels, shapes=True)
    assert timed < expected == set(met)

    plain_outputs, judged = task.outputs, []

    def noted_outputs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        judged.append((len(batch["input_ids"]), model is trainer.model))
        return plain_outputs(model, batch)

    task.outputs = noted_outputs
    # The test rows are for a model that computes in fp32: what is left when Accelerate's wrapper of precision is off.
    in_fp32 = copy.deepcopy(trainer.model)
    monkeypatch.setattr(trainer.accelerator, "unwrap_model", lambda _, keep_fp32_wrapper: in_fp32)
    _judge_largest_batches(trainer)
    # 18 validation rows; of the 40 test rows the 32 longest, which the others are much shorter than.
    assert judged == [(18, True), (32, False)]
    assert _exported_bytes(trainer) == 8 * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_without_memory_for_the_largest_batch_it_goes_on_in_halves_as_a_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path)
    task, plain, judged = trainer.task, trainer.task.outputs, []

    def short(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = len(batch["input_ids"])
        if rows > 16:
            raise torch.OutOfMemoryError("no memory")
        judged.append(rows)
        return plain(model, batch)

    task.outputs = short
    _judge_largest_batches(trainer)
    assert sum(judged) == 18 + 32
    said = capsys.readouterr().out
    assert "valid: no memory was left for 18 rows at a time" in said
    assert "test: no memory was left for 32 rows at a time" in said
