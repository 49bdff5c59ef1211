"""AdaLoRA (arXiv:2303.10512): low-rank updates that compete for one budget of ranks while they train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from finetune.adapters.peft_adapter import PeftAdapter, fan_in_fan_out
from finetune.adapters.targets import check_rank
from finetune.config import Share, TrainSettings
from finetune.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.task import Task

Positive = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(gt=0.0, lt=1.0)]
# What the allocator has learnt of the importance of each weight; without them a resumed run prunes other ranks.
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
SCORE_OF = "|"


class AdaLoRA(PeftAdapter):
    """Updates B diag(E) A that start with `init_r` ranks each and end with `target_r` on average.

    The phases are shares of the planned updates, so that the budget is reached whatever the plan.
    """

    name: Literal["adalora"] = "adalora"
    target_r: Positive = 8
    """Ranks that a matrix keeps, on average over all matrices."""
    init_r: Positive = 12
    """Ranks that each matrix starts with; above target_r."""
    alpha: Positive = 32
    """Updates are scaled by alpha / init_r."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of each update."""
    warmup_share: Share = 0.1
    """Share of the planned updates before the first rank is taken away."""
    final_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the planned updates that train with the final ranks."""
    allocate_every: Positive = 1
    """Updates between two allocations of ranks."""
    beta1: Beta = 0.85
    """Smoothing of the sensitivity of weights."""
    beta2: Beta = 0.85
    """Smoothing of its uncertainty."""
    orthogonality: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight of the penalty that keeps the rows of A and the columns of B orthonormal."""

    kinds: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D", "Conv2d")

    def check_training(self, settings: TrainSettings, accelerator: Accelerator) -> None:
        super().check_training(settings, accelerator)
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            # Ranks are taken away by the importance of whole rows and columns, of which each process has a part.
            raise ConfigError(
                "adapter=adalora can't be trained with sharded weights: no process sees all that it ranks.",
                "Launch with --multi_gpu in place of FSDP or DeepSpeed, or take adapter=lora.",
            )

    def phases(self, total_updates: int) -> tuple[int, int]:
        """Updates before the first rank is taken away, and updates with the final ranks.

        Raises:
            ConfigError: no update is left in which ranks could be taken away.
        """
        first, last = round(self.warmup_share * total_updates), max(1, round(self.final_share * total_updates))
        if total_updates - first - last < 2:
            raise ConfigError(
                f"AdaLoRA has no time to take ranks away: of {total_updates} updates {first} are warm-up "
                f"(adapter.warmup_share) and {last} are final (adapter.final_share).",
                "Plan more updates, lower those shares, or use adapter=lora.",
            )
        return first, last

    def peft_config(self, model: torch.nn.Module, task: Task, total_updates: int) -> Any:
        from peft import AdaLoraConfig

        if self.init_r <= self.target_r:
            raise ConfigError(
                f"adapter.init_r={self.init_r} is not above adapter.target_r={self.target_r}: nothing could be pruned.",
                f"Set adapter.init_r={self.target_r * 3 // 2 + 1}, or use adapter=lora.",
            )
        first, last = self.phases(total_updates)
        targets = self.found_targets(model, task)
        for name in targets:
            if getattr(model.get_submodule(name), "groups", 1) > 1:
                raise ConfigError(
                    f"adapter=adalora can't go into {name}, a grouped convolution.", "Leave it out of adapter.targets."
                )
        check_rank({name: model.get_submodule(name) for name in targets}, self.init_r, "adapter.init_r")
        return AdaLoraConfig(
            target_r=self.target_r,
            init_r=self.init_r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            tinit=first,
            tfinal=last,
            deltaT=self.allocate_every,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonality,
            total_step=total_updates,
            target_modules=targets,
            fan_in_fan_out=fan_in_fan_out(model, targets),
        )

    def penalty(self, model: Any) -> torch.Tensor | None:
        """The distance of A A' and B' B from identity, averaged over all A and B and weighed.

        PEFT adds it where the loss is computed inside the model from labels, once a forward pass. Here losses are
        sums over micro-batches, so it is computed alone, once an update.
        """
        if self.orthogonality == 0.0:
            return None
        distances = []
        for name, factor in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
        return self.orthogonality * torch.stack(distances).mean()

    def after_step(self, model: Any, update: int) -> None:
        # Between the optimizer's step and the clearing of gradients: importance is weight times gradient.
        for name, factor in model.named_parameters():
            if ".lora_" in name and factor.grad is not None:
                # An fp16 overflow, which the scaler skips, would stay in the smoothed scores for good.
                factor.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        model.base_model.update_and_allocate(update)

    def may_be_best(self, model: Any, update: int) -> bool:
        config = model.peft_config["default"]
        return update >= config.total_step - config.tfinal

    def state(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        allocator = model.base_model.rankallocator
        tensors = {
            f"{kind}{SCORE_OF}{name}": score.detach().cpu().clone()
            for kind in SCORES
            for name, score in getattr(allocator, kind).items()
        }
        return tensors, {"rank_pattern": model.peft_config["default"].rank_pattern}

    def load_state(self, model: Any, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        allocator = model.base_model.rankallocator
        allocator.reset_ipt()
        devices = {name: parameter.device for name, parameter in model.base_model.model.named_parameters()}
        for key, score in tensors.items():
            kind, _, name = key.partition(SCORE_OF)
            getattr(allocator, kind)[name] = score.to(devices[name])
        model.peft_config["default"].rank_pattern = values["rank_pattern"]

    def ranks(self, model: Any) -> dict[str, int]:
        """Ranks that each matrix keeps, by the module's name in the pretrained model."""
        pattern = model.peft_config["default"].rank_pattern or {}
        return {name.partition(".lora_E")[0]: sum(kept) for name, kept in pattern.items()}

    def summary(self, model: Any) -> dict[str, Any]:
        ranks = self.ranks(model)
        budget = model.base_model.rankallocator.target_bgt
        alive = sum(
            int(value.count_nonzero()) for name, value in model.named_parameters() if ".lora_E." in name
        )  # host sync, once a run
        if not ranks or sum(ranks.values()) > budget or alive > budget:
            raise TrainingError(
                f"AdaLoRA never reached its budget of {budget} ranks: {sum(ranks.values()) or alive} are left.",
                "Train to the end of the plan; a run that was stopped goes on with --resume.",
            )
        return {"ranks": ranks, "init_r": self.init_r, "target_r": self.target_r, "budget": budget}

    def tolerance(self) -> float:
        """Saving leaves pruned ranks out, and sums of fewer terms round otherwise."""
        return 1e-6
