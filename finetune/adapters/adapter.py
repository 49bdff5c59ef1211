"""The shape that every adapter has: typed settings, with the methods that the trainer and the export call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune.config import Section

if TYPE_CHECKING:
    from finetune.task import Task


class Adapter(Section):
    """What of a pretrained model is trained, and how. What it learns lives in the model that it wrapped.

    A new adapter subclasses it, sets `name` to a Literal of its own, and overrides what differs from training the
    model as it is.
    """

    name: str = ""

    def check(self, task: Task, total_updates: int) -> None:
        """Refuse settings that this model or plan can't have.

        Raises:
            ConfigError: names the setting.
        """

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        """The model to train; parameters that stay as they are have requires_grad False."""
        raise NotImplementedError

    def train_mode(self, model: torch.nn.Module) -> None:
        """Put the model into train mode, but for what must stay in evaluation mode."""
        model.train()

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """Added once an update to the mean loss; None for nothing."""
        return None

    def after_step(self, model: torch.nn.Module, update: int) -> None:
        """Called after the optimizer's step of `update` (from 1), before gradients are cleared."""

    def plain(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model that is exported: merged, of the pretrained model's own class."""
        return model
