"""The committed ResNet against its record: the same letters, settings and scores; a golden of first losses."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from finetune.checkpoint import Checkpoints
from finetune.evaluation.predict import predict_rows
from finetune.experiment import build_trainer
from finetune.history import History
from finetune.recipe import LoadedRecipe, load_recipe, override
from finetune.task import Task
from finetune.trainer import Trainer

pytestmark = pytest.mark.equivalence
FOLDER = Path(__file__).parents[2] / "finetune" / "pretrained" / "letters_resnet"
RECORD = json.loads((FOLDER / "run.json").read_text())
# Losses of the recipe's first updates. Written anew by FINETUNE_WRITE_GOLDENS=1 only, in a commit that says why.
GOLDEN = Path(__file__).with_name("letters_resnet_losses.json")


@pytest.fixture(scope="module")
def recipe() -> LoadedRecipe:
    loaded = load_recipe("resnet_pretrain")
    override(loaded, ["train.threads=1"])
    return loaded


@pytest.fixture(scope="module")
def task(recipe: LoadedRecipe) -> Task:
    return recipe.build()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_recipe_is_the_recorded_one(recipe: LoadedRecipe, task: Task) -> None:
    assert task.data.sha256 == RECORD["data"]["sha256"]
    assert list(task.data.labels) == RECORD["data"]["labels"]
    assert {name: len(rows) for name, rows in task.rows.items()} == RECORD["data"]["rows"]
    assert sum(parameter.numel() for parameter in task.model.parameters()) == RECORD["model"]["parameters"]
    then, now = RECORD["config"], recipe.resolved()
    for section in ("data", "objective", "train"):
        assert {key: now[section][key] for key in then[section]} == then[section], section
    # The record states widths and depths one by one, as the recipe did then.
    width, blocks = now["model"]["width"], now["model"]["blocks"]
    assert then["model"]["widths"] == [width, 2 * width, 4 * width]
    assert then["model"]["depths"] == [blocks] * 3
    assert then["model"]["side"] == now["model"]["side"]


def test_the_committed_weights_have_the_recorded_scores(task: Task) -> None:
    model = AutoModelForImageClassification.from_pretrained(FOLDER)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    for split in ("valid", "test"):
        outputs = predict_rows(model, task.rows[split], task.collate, task.outputs, accelerator, split)
        found, recorded = task.judge.judge(split, outputs)["metrics"], RECORD["metrics"][split]
        for name in ("accuracy", "macro_f1"):
            # Another processor rounds otherwise, and a few of 832 letters stand on the edge.
            assert found[name]["value"] == pytest.approx(recorded[name]["value"], abs=3 / 832), (split, name)


class StopBefore(History):
    """Asks the trainer to stop with update `last`, as SIGTERM does; the schedule is that of the whole plan."""

    def __init__(self, path: Path, trainer: Trainer, last: int) -> None:
        super().__init__(path)
        self.trainer, self.last = trainer, last

    def add(self, line: dict[str, Any]) -> None:
        super().add(line)
        if line["update"] == self.last - 1:
            self.trainer.signal = signal.SIGTERM


def test_the_first_updates_give_the_losses_of_the_golden(recipe: LoadedRecipe, task: Task, tmp_path: Path) -> None:
    """Only one machine repeats a run bit for bit, so losses are held to what rounding changes in eight updates."""
    trainer = build_trainer(recipe, task, Accelerator(cpu=True, mixed_precision="no"))
    trainer.history = StopBefore(tmp_path / "history.jsonl", trainer, last=8)
    trainer.checkpoints = Checkpoints(tmp_path / "checkpoints", 1, print)
    assert trainer.fit()[1].update == 8
    losses = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    if os.environ.get("FINETUNE_WRITE_GOLDENS"):
        GOLDEN.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text())["losses"], rtol=1e-4)


def test_weights_are_what_the_card_says() -> None:
    weights = load_file(FOLDER / "model.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(t.numel() for name, t in weights.items() if not name.endswith(statistics)) == 277_124
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
