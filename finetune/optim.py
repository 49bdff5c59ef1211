"""The optimizer, and the learning rate as a pure function of the update."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

from finetune.config import TrainSettings


def build_optimizer(
    model: torch.nn.Module,
    settings: TrainSettings,
    lr_scales: Mapping[str, float] | None = None,
    undecayed: Collection[str] = (),
) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters; biases and normalisation weights are not decayed.

    Args:
        lr_scales: learning rates as multiples of train.lr, by parameter name; those left out have 1.
        undecayed: names of further parameters that are not decayed.
    """
    scales = lr_scales or {}
    # The two groups at train.lr come first: the learning rate of the first group is the one that is logged.
    found: dict[tuple[float, bool], list[torch.nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Biases and the weights of LayerNorm, RMSNorm and BatchNorm are what has one dimension.
            decayed = parameter.ndim > 1 and name not in undecayed
            found.setdefault((scales.get(name, 1.0), decayed), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "peak_lr": settings.lr * scale,
        }
        for (scale, decayed), parameters in found.items()
        if parameters
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, settings.adam_beta2), eps=1e-8, fused=True)


def warmup_updates(settings: TrainSettings, total_updates: int) -> int:
    """Warm-up in updates: what was set, or 6 % of the plan."""
    if settings.lr_warmup_updates is not None:
        return settings.lr_warmup_updates
    return math.ceil(0.06 * total_updates)


def lr_factor(update: int, total_updates: int, warmup: int, shape: str, end: float = 0.0) -> float:
    """The learning rate of an update (0-based) as a share of its peak.

    With `end` 0 the same numbers as transformers' get_{linear,cosine,constant}_schedule_with_warmup; else linear and
    cosine fall to that share of the peak instead, as nanoGPT's `min_lr` does. A function, because an
    object would have to be saved, and a prepared one steps once for each process.
    """
    if update < warmup:
        return update / max(1, warmup)
    if shape == "constant":
        return 1.0
    progress = (update - warmup) / max(1, total_updates - warmup)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if shape == "cosine" else 1.0 - progress
    return end + (1.0 - end) * max(0.0, left)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each parameter group its peak rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
