"""The room that a run needs, estimated before training, against what it really takes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from finetune.checkpoint import Checkpoints, Progress
from finetune.disk_space import check_disk_space, checkpoint_bytes, model_bytes
from finetune.errors import ConfigError
from finetune.state import capture

pytestmark = pytest.mark.unit

Usage = namedtuple("Usage", "total used free")


def run_of(model: torch.nn.Module, keep: int = 1) -> Any:
    """As much of a trainer as the estimate reads."""
    settings, plan = SimpleNamespace(keep_checkpoints=keep), SimpleNamespace(total_updates=100)
    return cast(Any, SimpleNamespace(model=model, settings=settings, plan=plan))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_estimate_is_what_a_checkpoint_takes(tmp_path: Path, frozen: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.BatchNorm1d(400), torch.nn.Linear(400, 200))
    model[0].requires_grad_(not frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    saved = Checkpoints(tmp_path, 1, print).save(capture(model, optimizer), Progress(1), {})
    really = sum(path.stat().st_size for path in saved.iterdir())
    assert checkpoint_bytes(run_of(model)) == pytest.approx(really, rel=0.01)
    whole = sum(p.numel() * 4 for p in model.parameters())
    assert model_bytes(run_of(model)) == (2 * whole if frozen else whole)


def test_a_disk_that_is_too_small_is_refused_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run_of(torch.nn.Linear(1000, 1000, bias=False), keep=2)  # 4 checkpoints of 12 MB, the model 4 MB
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 0, 51_000_000))
    with pytest.raises(ConfigError, match=r"up to 0\.05 GB .*4 checkpoints of 0\.01 GB.*0\.05 GB are free") as caught:
        check_disk_space(trainer, tmp_path / "not" / "made")
    assert "train.keep_checkpoints" in caught.value.fix
    (tmp_path / "checkpoint").write_bytes(bytes(1_000_000))  # a resumed run's own
    check_disk_space(trainer, tmp_path)
