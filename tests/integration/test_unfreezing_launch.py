"""Gradual unfreezing on two processes: what is unfrozen after DDP has wrapped the model is reduced too."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.checkpoint import Checkpoints
from tests.integration.test_launch_line import TWO, launch, losses, record_of
from tests.trainers import EXACT, make_trainer

pytestmark = pytest.mark.integration

UPDATES = 8
SETTINGS = (
    "adapter.unfreeze_every_updates=2", "adapter.freeze_below=3", "train.lr=1e-3", f"train.max_updates={UPDATES}",
    "train.micro_batch_size=4", f"train.eval_every_updates={UPDATES}",
)  # fmt: skip


def test_two_processes_equal_one_and_exit_clean(tmp_path: Path, free_port: int) -> None:
    one = make_trainer(tmp_path / "one", "adapter=layers", *SETTINGS)
    one.fit()
    options = [part for setting in (*EXACT, *SETTINGS) for part in ("--set", setting)]
    two = launch(
        f"{TWO.format(port=free_port)} --recipe bert_cls --adapter layers", *options,
        "--data", tmp_path / "one" / "reviews.csv", "--output", tmp_path / "two", ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert "Traceback" not in two.stderr
    assert record_of(tmp_path / "two")["hardware"]["processes"] == 2
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(ours) == UPDATES
    assert theirs == pytest.approx(ours, rel=1e-5)
    folder = tmp_path / "two" / "checkpoints"
    weights = [one.checkpoints.read(UPDATES)[0], Checkpoints(folder, 1, print).read(UPDATES)[0]]
    first, second = (state.tensors["model"] for state in weights)
    assert set(first) == set(second)
    # The lowest unfrozen layer is trained for two updates only; were it not reduced, processes would differ by 1e-3.
    assert max(float((first[name] - second[name]).abs().max()) for name in first if first[name].ndim) < 2e-5
