"""(IA)^3 (arXiv:2205.05638): one trained factor for each feature of keys, values and feed-forward layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from finetune.adapters.peft_adapter import PeftAdapter, fan_in_fan_out
from finetune.adapters.targets import find_targets
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task


class IA3(PeftAdapter):
    """Trained factors on the outputs of `targets`, and on the inputs of those that are `feedforward`."""

    name: Literal["ia3"] = "ia3"
    targets: list[str] = Field(default_factory=list)
    """Modules to scale: names or their ends, or regular expressions. Empty takes the paper's: keys, values and the
    second feed-forward layer, as far as the architecture is known."""
    feedforward: list[str] = Field(default_factory=list)
    """Those of the targets whose input is scaled, not their output."""

    kinds: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D", "Conv2d", "Conv3d")

    def peft_config(self, model: torch.nn.Module, task: Task, total_updates: int) -> Any:
        from peft import IA3Config

        patterns, forward = self.targets, self.feedforward
        if not patterns:
            if forward:
                raise ConfigError("adapter.feedforward goes with adapter.targets, which is empty.", "Set both.")
            patterns, forward = self._usual(model)
        targets = find_targets(model, patterns, task, self.kinds, "adapter.targets")
        inputs = find_targets(model, forward, task, self.kinds, "adapter.feedforward")
        stray = sorted(set(inputs) - set(targets))
        if stray:
            raise ConfigError(
                f"adapter.feedforward means {stray[0]}, which is no target.", "Add it to adapter.targets."
            )
        return IA3Config(
            target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=fan_in_fan_out(model, targets)
        )

    def _usual(self, model: Any) -> tuple[list[str], list[str]]:
        from peft.utils.constants import (
            TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
        )
        from peft.utils.constants import (
            TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
        )

        architecture = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if architecture not in TARGETS:
            raise ConfigError(
                f"adapter.targets is empty, and which modules (IA)^3 scales in a {architecture} is not known.",
                "Set adapter.targets, and adapter.feedforward for those whose input is scaled.",
            )
        return TARGETS[architecture], FEEDFORWARD[architecture]

    def undecayed(self, model: torch.nn.Module) -> set[str]:
        # A factor of 1 changes nothing; decay would pull it to 0, where the feature is gone.
        return {name for name, _ in model.named_parameters() if ".ia3_l." in name}
