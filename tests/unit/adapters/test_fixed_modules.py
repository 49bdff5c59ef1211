"""Modules that a task fixes stay as they are, whatever the adapter trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.adapters.adapter import leave_fixed
from finetune.adapters.targets import find_targets
from finetune.errors import ConfigError

pytestmark = pytest.mark.unit


def model_and_task(*fixed: str) -> tuple[torch.nn.Module, Any]:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("layer", "layer2", "classifier")})
    return model, SimpleNamespace(fixed_modules=fixed, head_modules=())


def test_fixed_modules_are_frozen_and_their_namesakes_are_not() -> None:
    model, task = model_and_task("layer", "classifier")
    leave_fixed(model, task)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["layer2.weight", "layer2.bias"]


def test_adapters_go_into_the_others() -> None:
    model, task = model_and_task("layer", "classifier")
    assert find_targets(model, ["all-linear"], task, ("Linear",), "adapter.targets") == ["layer2"]


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing of this model to train"):
        leave_fixed(*model_and_task("layer", "layer2", "classifier"))
