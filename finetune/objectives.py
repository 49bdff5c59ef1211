"""Losses as sums with their target counts; the trainer divides once, by the count over all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Logits that stand in memory at once: 64 MB in fp32, and as much again for their gradient.
CHUNK_LOGITS = 1 << 24


def cross_entropy_sum(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, weights_C: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of the cross-entropy over rows, in fp32 whatever the logits' precision.

    Divided by `target_count` with the same weights it equals `torch.nn.CrossEntropyLoss`.
    """
    return F.cross_entropy(logits_BC.float(), labels_B, weights_C, reduction="sum", label_smoothing=smoothing)


def squared_error_sum(predictions_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the squared difference, in fp32; divided by `target_count` it equals `torch.nn.MSELoss`."""
    return F.mse_loss(predictions_B.float(), labels_B.float(), reduction="sum")


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


def token_losses(
    model: torch.nn.Module, input_ids_BT: torch.Tensor, targets_BT: torch.Tensor, chunk_logits: int = CHUNK_LOGITS
) -> torch.Tensor:
    """Cross-entropy of every target of a causal language model, [B, T] fp32; 0 where the target is -100.

    The logits of all tokens never stand in memory together: the model's head gets its input a chunk at a time, and
    each chunk's logits are computed again in the backward pass. Everything happens inside the model's own forward, so
    that autocast, adapters on the head, tied weights and DDP see what they always see.

    Args:
        model: a transformers causal language model, wrapped by PEFT or DDP or not.
        targets_BT: what comes after each input; -100 counts nothing.
        chunk_logits: most logits at once; less memory, at a little more time.
    """
    head = output_head(model)
    found: list[torch.Tensor] = []

    def score(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        handle.remove()  # the chunks go through the head too
        # The last ones: virtual tokens of an adapter come before them, and have no targets.
        hidden_BTD = inputs[0][:, -targets_BT.shape[1] :]
        found.append(chunked_losses(head, hidden_BTD, targets_BT, chunk_logits))
        return (inputs[0][:, :1],)  # what the model itself goes on with is thrown away

    handle = head.register_forward_pre_hook(score)
    try:
        model(input_ids=input_ids_BT, use_cache=False)
    finally:
        handle.remove()
    return found[0]


def chunked_losses(
    head: torch.nn.Module, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor, chunk_logits: int
) -> torch.Tensor:
    """Cross-entropy of head(hidden) against the targets, [B, T] fp32, a chunk of tokens at a time.

    Tokens without a target are left out before the head, which is a third of a small model's work: a prompt's tokens
    and padding cost nothing there. Their loss is 0 and their gradient none, as if they had gone through.
    """
    vocabulary = cast(torch.Tensor, head.weight).shape[0]
    rows = max(1, chunk_logits // vocabulary)
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    counted_N = targets_N != -100
    everything = bool(counted_N.all())
    if not everything:
        counted_N[0] |= ~counted_N.any()  # something must go through, or DDP would wait for the head's gradient
        hidden_ND, targets_N = hidden_ND[counted_N], targets_N[counted_N]

    def of_chunk(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(hidden_ND).float(), targets_N, ignore_index=-100, reduction="none")

    chunks = list(zip(hidden_ND.split(rows), targets_N.split(rows), strict=True))
    at_once = hidden_ND.requires_grad and not any(parameter.requires_grad for parameter in head.parameters())
    losses_N = _gradient_at_once(of_chunk) if at_once else of_chunk
    # A single chunk is all that stands in memory anyway, and is not computed twice for it.
    again = torch.is_grad_enabled() and len(chunks) > 1 and not at_once
    losses: Any = [checkpoint(losses_N, *chunk, use_reentrant=False) if again else losses_N(*chunk) for chunk in chunks]
    found_N = torch.cat(losses)
    if not everything:
        found_N = torch.zeros(counted_N.shape, dtype=found_N.dtype, device=found_N.device).masked_scatter(
            counted_N, found_N
        )
    return found_N.view(targets_BT.shape)


def _gradient_at_once(
    losses_N: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`losses_N` whose gradient in hidden_ND is computed along with it, so that no logits are computed a second time.

    A token's loss depends on its own hidden state alone, so what comes back later is one factor a token. Only for a
    head that isn't trained: its own gradient would need those factors first.
    """

    class AtOnce(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                again_ND = hidden_ND.detach().requires_grad_()
                found_N = losses_N(again_ND, targets_N)
                (gradient_ND,) = torch.autograd.grad(found_N.sum(), again_ND)
            ctx.save_for_backward(gradient_ND)
            return found_N.detach()

        @staticmethod
        def backward(ctx: Any, factors_N: torch.Tensor) -> tuple[torch.Tensor, None]:
            (gradient_ND,) = ctx.saved_tensors
            return (gradient_ND * factors_N[:, None]).to(gradient_ND.dtype), None

    return lambda hidden_ND, targets_N: cast(torch.Tensor, AtOnce.apply(hidden_ND, targets_N))


def output_head(model: torch.nn.Module) -> torch.nn.Module:
    """The module that makes logits of hidden states, found through wrappers (DDP has no such method of its own)."""
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings"):
        inner = inner.module
    return inner.get_output_embeddings()


def next_token_count(targets_BT: torch.Tensor) -> torch.Tensor:
    """Targets that are counted (not -100), as a float64 scalar: what the sum of `token_losses` is divided by."""
    return (targets_BT != -100).sum(dtype=torch.float64)
