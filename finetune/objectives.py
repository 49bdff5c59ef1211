"""Losses as sums with their target counts; the trainer divides once, by the count over all processes."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def cross_entropy_sum(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, weights_C: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of the cross-entropy over rows, in fp32 whatever the logits' precision.

    Divided by `target_count` with the same weights it equals `torch.nn.CrossEntropyLoss`.
    """
    return F.cross_entropy(logits_BC.float(), labels_B, weights_C, reduction="sum", label_smoothing=smoothing)


def target_count(labels_B: torch.Tensor, weights_C: torch.Tensor | None = None) -> torch.Tensor:
    """What `cross_entropy_sum` is divided by: rows, or the sum of their class weights. A float64 scalar."""
    if weights_C is None:
        return torch.tensor(float(labels_B.numel()), dtype=torch.float64)
    return weights_C[labels_B].sum(dtype=torch.float64)


def balanced_class_weights(label_counts_C: torch.Tensor) -> torch.Tensor:
    """rows / (classes x rows of the class), as scikit-learn's `balanced`; classes without a row weigh 0."""
    present = label_counts_C > 0
    weights = label_counts_C.sum() / (len(label_counts_C) * label_counts_C.clamp(min=1))
    return torch.where(present, weights, torch.zeros_like(weights)).float()
