"""The shape that every adapter has: typed settings, with the methods that the trainer and the export call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from finetune.config import Section, TrainSettings
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.task import Task


class Adapter(Section):
    """What of a pretrained model is trained, and how. What it learns lives in the model that it wrapped.

    A new adapter subclasses it, sets `name` to a Literal of its own, and overrides what differs from training the
    model as it is.
    """

    name: str = ""
    head_lr_ratio: Annotated[float, Field(gt=0.0)] = 1.0
    """Learning rate of the head as a multiple of train.lr; a new head often bears more than pretrained weights."""

    mergeable: ClassVar[bool] = True
    """Whether `plain` gives a model of the pretrained class; else the run exports adapter/ and its base alone."""
    checkpointable: ClassVar[bool] = True
    """Whether layers may be computed a second time (train.activation_checkpointing)."""

    def check_machine(self) -> None:
        """Refuse what this machine or installation can't do. Called before data and model are loaded.

        Raises:
            ConfigError: says what is missing, and what to use instead.
        """

    def check_training(self, settings: TrainSettings, accelerator: Accelerator) -> None:
        """Refuse ways to train that this adapter can't go with.

        Raises:
            ConfigError: names the setting or the launcher's flag.
        """
        if self.changes_what_is_trained and accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            # They settle what is trained when they shard.
            raise ConfigError(
                f"adapter={self.name} unfreezes parameters while it trains, which sharded weights can't follow.",
                "Launch with --multi_gpu in place of FSDP or DeepSpeed, or take another adapter.",
            )
        if settings.activation_checkpointing and not self.checkpointable:
            # transformers leaves out what stands before the text when it computes a layer again.
            raise ConfigError(
                f"train.activation_checkpointing=true would drop what adapter={self.name} trains.", "Leave it out."
            )

    def added_tokens(self) -> int:
        """Positions of the model's context that the adapter takes up itself."""
        return 0

    def check(self, task: Task, total_updates: int) -> None:
        """Refuse settings that this model or plan can't have.

        Raises:
            ConfigError: names the setting.
        """
        if self.head_lr_ratio != 1.0 and not task.head_modules:
            raise ConfigError(
                "adapter.head_lr_ratio is ignored: this recipe's model has no head of its own.", "Leave it out."
            )

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        """The model to train; parameters that stay as they are have requires_grad False."""
        raise NotImplementedError

    def before_update(self, model: torch.nn.Module, task: Task, update: int) -> bool:
        """Called before `update` (from 0): whether other parameters are trained from here than before.

        All that are ever trained have requires_grad after `wrap`: the optimizer and checkpoints hold those.
        """
        return False

    @property
    def changes_what_is_trained(self) -> bool:
        """Whether `before_update` may ever say so."""
        return False

    @property
    def keeps_base(self) -> bool:
        """Whether the saved adapter goes onto other weights than the pretrained ones, which are then kept with it."""
        return False

    def train_mode(self, model: torch.nn.Module) -> None:
        """Put the model into train mode, but for what must stay in evaluation mode."""
        model.train()

    def lr_scales(self, model: torch.nn.Module, task: Task) -> dict[str, float]:
        """Learning rates as multiples of train.lr, by parameter name; parameters left out have 1."""
        if self.head_lr_ratio == 1.0:
            return {}
        return {name: self.head_lr_ratio for name in head_parameters(model, task)}

    def undecayed(self, model: torch.nn.Module) -> set[str]:
        """Names of parameters with two or more dimensions that weight decay must leave alone."""
        return set()

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """Added once an update to the mean loss; None for nothing."""
        return None

    def after_step(self, model: torch.nn.Module, update: int) -> None:
        """Called after the optimizer's step of `update` (from 1), before gradients are cleared."""

    def may_be_best(self, model: torch.nn.Module, update: int) -> bool:
        """Whether the weights after `update` are ones that this adapter would export."""
        return True

    def state(self, model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint must hold besides weights and optimizer: tensors, and JSON-able values."""
        return {}, {}

    def load_state(
        self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]
    ) -> None:
        """Put back what `state` returned."""

    def summary(self, model: torch.nn.Module) -> dict[str, Any]:
        """What the run record says of the trained adapter, JSON-able.

        Raises:
            TrainingError: training ended without having done what the adapter is for.
        """
        return {}

    def save(self, model: torch.nn.Module, folder: Path, base: str, revision: str | None) -> bool:
        """Write the adapter alone, as PEFT does, naming `base` as what it goes onto; False when it has no such form."""
        return False

    def base(self, model: torch.nn.Module) -> torch.nn.Module:
        """A copy of the pretrained model that the saved adapter goes onto, of its own class."""
        raise NotImplementedError

    def load(self, base: torch.nn.Module, folder: Path) -> torch.nn.Module:
        """The saved adapter on its base, as somebody without this toolkit loads it."""
        raise NotImplementedError

    def tolerance(self) -> float:
        """Largest difference of logits, relative to the largest, that saving the adapter and loading it may make."""
        return 0.0

    def plain(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model that is exported, if `mergeable`: merged, of the pretrained class. Takes `model` apart."""
        return model


def leave_fixed(model: torch.nn.Module, task: Task) -> None:
    """Freeze the task's `fixed_modules` in a wrapped model, whatever the adapter makes of them.

    Raises:
        ConfigError: nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if is_fixed(name, task):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("The adapter leaves nothing of this model to train.", "Use adapter=full.")


def head_parameters(model: torch.nn.Module, task: Task) -> list[str]:
    """Names of the trained parameters of the task's head, also where an adapter has wrapped it."""
    heads = [f".{name}." for name in task.head_modules]
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(head in f".{name}" for head in heads)
    ]


def is_fixed(parameter: str, task: Task) -> bool:
    """Whether a parameter, by its name in the model or in a wrapped one, is of the task's `fixed_modules`."""
    return any(f".{fixed}." in f".{parameter}" for fixed in task.fixed_modules)
