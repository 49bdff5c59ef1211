"""Training part of a model as it is: the upper layers, each layer at a rate of its own, or the biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from finetune.adapters.adapter import Adapter, is_fixed
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task


class Layers(Adapter):
    """Full training that treats lower layers with more care: frozen, or at lower learning rates."""

    name: Literal["layers"] = "layers"
    freeze_below: Annotated[int, Field(ge=0)] | None = None
    """Layers with a lower number stay as they are, embeddings included; 0 freezes the embeddings alone."""
    lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each layer's learning rate as a multiple of that of the layer above it (0.9 is usual)."""
    reuse_features: bool = True
    """Compute once what the layers below `freeze_below` give, and train the others on it (later runs read it, see
    train.keep_outputs); false runs them in every epoch, for the same result up to rounding."""
    unfreeze_every_updates: Annotated[int, Field(ge=1)] | None = None
    """Gradual unfreezing (arXiv:1801.06146): first what is above the layers is trained, then one layer more, from the
    top down, each time so many updates have passed; embeddings last."""

    def check(self, task: Task, total_updates: int) -> None:
        super().check(task, total_updates)
        _, layers = layer_depths(task.model)
        if self.freeze_below is not None and self.freeze_below > layers:
            raise ConfigError(
                f"adapter.freeze_below={self.freeze_below}, but the model has {layers} layers.",
                "Use adapter=frozen to train nothing but the head.",
            )
        if self.freeze_below is None and self.lr_decay == 1.0 and self.unfreeze_every_updates is None:
            raise ConfigError(
                "adapter=layers does nothing as it is set.",
                "Set adapter.freeze_below, adapter.lr_decay or adapter.unfreeze_every_updates.",
            )
        if not self.reuse_features and not self.freeze_below:
            raise ConfigError(
                "adapter.reuse_features is ignored: no layer is frozen all the time.",
                "Set adapter.freeze_below, or leave it out.",
            )
        if self.unfreeze_every_updates is not None:
            self._check_unfreezing(self.unfreeze_every_updates, layers + 1 - self._lowest, total_updates)

    def _check_unfreezing(self, every: int, steps: int, total_updates: int) -> None:
        setting = f"adapter.unfreeze_every_updates={every}"
        if steps == 0:
            raise ConfigError(
                f"{setting} has nothing to unfreeze: adapter.freeze_below={self.freeze_below} keeps all layers frozen.",
                "Lower adapter.freeze_below, or leave one of them out.",
            )
        if steps * every >= total_updates:
            longest = (total_updates - 1) // steps
            raise ConfigError(
                f"{setting} would unfreeze the last of {steps} parts after {steps * every} updates, and "
                f"{total_updates} are planned.",
                f"Set adapter.unfreeze_every_updates={longest} or less." if longest else "Plan more updates.",
            )

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        depths, _ = layer_depths(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(depths[name] >= self._lowest)
        return model

    def before_update(self, model: torch.nn.Module, task: Task, update: int) -> bool:
        if self.unfreeze_every_updates is None:
            return False
        depths, layers = layer_depths(model)
        lowest = max(self._lowest, layers + 1 - update // self.unfreeze_every_updates)
        changed = False
        for name, parameter in model.named_parameters():
            trained = depths[name] >= lowest and not is_fixed(name, task)
            changed |= parameter.requires_grad != trained
            parameter.requires_grad_(trained)
        return changed

    @property
    def changes_what_is_trained(self) -> bool:
        return self.unfreeze_every_updates is not None

    @property
    def _lowest(self) -> int:
        """Depth from which on everything is trained in the end."""
        return 0 if self.freeze_below is None else self.freeze_below + 1

    def train_mode(self, model: torch.nn.Module) -> None:
        # As for a frozen encoder: dropout on features that can't adapt to it is only noise.
        model.train()
        for module in model.modules():
            trained = [parameter.requires_grad for parameter in module.parameters()]
            if trained and not any(trained):
                module.eval()

    def lr_scales(self, model: torch.nn.Module, task: Task) -> dict[str, float]:
        depths, layers = layer_depths(model)
        scales = {name: self.lr_decay ** (layers + 1 - depth) for name, depth in depths.items()}
        return {name: scale for name, scale in scales.items() if scale != 1.0} | super().lr_scales(model, task)


class BitFit(Adapter):
    """Only biases are trained, and the head (arXiv:2106.10199)."""

    name: Literal["bitfit"] = "bitfit"

    def check(self, task: Task, total_updates: int) -> None:
        super().check(task, total_updates)
        if not any(_is_bias(name) for name, _ in task.model.named_parameters()):
            raise ConfigError("adapter=bitfit finds no biases: this model has none.", "Use adapter=lora.")

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_bias(name))
        for name in task.head_modules:
            model.get_submodule(name).requires_grad_(True)
        return model


def layer_depths(model: torch.nn.Module) -> tuple[dict[str, int], int]:
    """Depth of every parameter, and the number of layers n.

    0 is below the first layer (embeddings), 1 to n are the layers, n + 1 is above them (final norm, pooler, head).

    Raises:
        ConfigError: the model has no list of layers.
    """
    largest, layers = layer_list(model)
    depths: dict[str, int] = {}
    passed = False
    for name, _ in model.named_parameters():
        if name.startswith(f"{largest}."):
            passed = True
            depths[name] = int(name.removeprefix(f"{largest}.").partition(".")[0]) + 1
        else:
            depths[name] = len(layers) + 1 if passed else 0
    return depths, len(layers)


def layer_list(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """A model's layers and their name: the module list that holds most of its weights.

    Raises:
        ConfigError: the model has no list of layers.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    sizes = {name: sum(some.numel() for some in found.parameters()) for name, found in lists.items() if len(found) > 1}
    if not sizes:
        raise ConfigError(f"{type(model).__name__} has no list of layers that could be counted.", "Use adapter=full.")
    largest = max(sizes, key=lambda name: sizes[name])
    return largest, lists[largest]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
