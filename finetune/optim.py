"""The optimizer, and the learning rate as a pure function of the update."""

from __future__ import annotations

import math

import torch

from finetune.config import TrainSettings


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters; biases and normalisation weights are not decayed."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Biases and the weights of LayerNorm, RMSNorm and BatchNorm are what has one dimension.
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "peak_lr": settings.lr}
        for parameters, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        if parameters
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def warmup_updates(settings: TrainSettings, total_updates: int) -> int:
    """Warm-up in updates: what was set, or 6 % of the plan."""
    if settings.lr_warmup_updates is not None:
        return settings.lr_warmup_updates
    return math.ceil(0.06 * total_updates)


def lr_factor(update: int, total_updates: int, warmup: int, shape: str) -> float:
    """The learning rate of an update (0-based) as a share of its peak.

    The same numbers as transformers' get_{linear,cosine,constant}_schedule_with_warmup. A function, because an
    object would have to be saved, and a prepared one steps once for each process.
    """
    if update < warmup:
        return update / max(1, warmup)
    if shape == "constant":
        return 1.0
    progress = (update - warmup) / max(1, total_updates - warmup)
    if shape == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return max(0.0, 1.0 - progress)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each parameter group its peak rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
