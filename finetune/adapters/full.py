"""Training everything, and training nothing but the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from finetune.adapters.adapter import Adapter
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task


class Full(Adapter):
    """Every parameter is trained."""

    name: Literal["full"] = "full"

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        return model.requires_grad_(True)


class Frozen(Adapter):
    """Only the head is trained; the encoder keeps its weights, its dropout off and its BatchNorm statistics."""

    name: Literal["frozen"] = "frozen"
    reuse_features: bool = True
    """Compute the encoder's output once and train the head on it; false runs the encoder in every epoch, for the same
    result up to rounding."""

    def check(self, task: Task, total_updates: int) -> None:
        if not task.head_modules:
            raise ConfigError("adapter=frozen has no head to train: this recipe's model has none.", "Use adapter=full.")

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        model.requires_grad_(False)
        for name in task.head_modules:
            model.get_submodule(name).requires_grad_(True)
        return model

    def train_mode(self, model: torch.nn.Module) -> None:
        # Dropout of frozen layers only adds noise to fixed features, and BatchNorm would drift away from the weights.
        model.eval()
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.train()
