"""Dropout masks at a tenth of the price on CPUs: torch draws them one by one there, which is a quarter of a long step.

It serves every model without touching one: `F.dropout` (and with it `nn.Dropout`), and the dropout inside
`scaled_dot_product_attention`, which torch computes step by step on CPUs anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# A mask element is 16 random bits against a threshold, so that a probability is met to 1 / 65,536.
LEVELS = 2**16
# Elements of an fp32 mask that is kept as what to multiply with: a product takes a third of the time of an AND of bits.
# Larger ones leave the caches, and would take four times their memory until the backward pass.
MOST_FACTORS = 1 << 20
_TORCHS_DROPOUT, _TORCHS_ATTENTION = F.dropout, F.scaled_dot_product_attention


@contextmanager
def fast_dropout(device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which dropout on the CPU is cheap; nothing elsewhere, where torch's own is.

    Masks are keyed by torch's generator, as torch's own are: each takes one number from it, its seed. So what makes
    those a function of (seed, update, micro-shard) makes these one too, and activation checkpointing repeats them.
    """
    if not wanted or device.type != "cpu":
        yield
        return
    # Put in place by name: a torch function mode is off in a backward pass, where checkpointed layers run again.
    before = F.dropout, F.scaled_dot_product_attention
    F.dropout, F.scaled_dot_product_attention = _dropout, _attention
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = before


def is_fast() -> bool:
    """Whether dropout is cheap just now."""
    return F.dropout is _dropout


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or not 0 < p < 1 or inplace or input.dtype not in _BITS or input.numel() == 0:
        return _TORCHS_DROPOUT(input, p, training, inplace)
    dropped: torch.Tensor = _Masked.apply(input, keep_mask(input.shape, p), 1 / (1 - p))
    return dropped


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Softmax(query keyᵀ scale + mask), dropped out, times value; shapes [..., T, D] as torch has them."""
    if not dropout_p or enable_gqa or (is_causal and attn_mask is not None):
        return _TORCHS_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cpu"):  # as torch does it: in low precision as a whole, softmax included
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    with torch.autocast("cpu", enabled=False):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            attn_mask = torch.ones((query.shape[-2], key.shape[-2]), dtype=torch.bool).tril()
        scores_TS = masked_scores(query * factor, key, attn_mask)
        return torch.matmul(_dropout(softmax(scores_TS), dropout_p), value)


def masked_scores(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """query keyᵀ + mask, [..., T, S]; a bool mask is true where a query may look."""
    scores_TS = torch.matmul(query, key.transpose(-2, -1))
    if mask is None:
        return scores_TS
    if mask.dtype == torch.bool:
        # The smallest number and not -inf: a row that may look at nothing must not become NaN.
        least = torch.finfo(scores_TS.dtype).min
        mask = torch.zeros_like(mask, dtype=scores_TS.dtype).masked_fill_(~mask, least)
    return scores_TS + mask.to(scores_TS.dtype)


# Shorter rows of bf16 go one element at a time through torch's softmax where they don't fill its vectors.
SHORT_FORWARD, SHORT_BACKWARD, VECTOR = 64, 32, 32


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, rounded once; rows of 28 elements in a quarter of torch's time, a sixth backward."""
    if scores.dtype != torch.bfloat16 or scores.shape[-1] >= SHORT_FORWARD or scores.shape[-1] % VECTOR == 0:
        return scores.softmax(-1)
    shares: torch.Tensor = _ShortSoftmax.apply(scores)
    return shares


class _ShortSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        shares = scores.float().softmax(-1).to(scores.dtype)
        ctx.save_for_backward(shares)
        return shares

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (shares,) = ctx.saved_tensors
        if shares.shape[-1] >= SHORT_BACKWARD:
            return torch._softmax_backward_data(grad, shares, -1, grad.dtype)
        found = torch._softmax_backward_data(grad.float(), shares.float(), -1, torch.float32)
        return found.to(grad.dtype)


_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def keep_mask(shape: torch.Size, p: float) -> torch.Tensor:
    """True where an element stays, [shape]."""
    elements = shape.numel()
    seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
    words = np.random.SFC64(seed).random_raw(-(-elements * 2 // 8))
    # Compared by NumPy: torch takes ten times as long for it.
    stays = words.view(np.int16)[:elements] >= round(p * LEVELS) - LEVELS // 2
    return torch.from_numpy(stays).view(shape)


class _Masked(torch.autograd.Function):
    """x scaled where the mask is true, 0 elsewhere: an AND of the bits, far faster than a product with a bool mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
        if x.dtype == torch.float32 and x.numel() <= MOST_FACTORS:
            keep = factors(keep, scale)
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return masked(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return masked(grad, ctx.saved_tensors[0], ctx.scale), None, None


def factors(keep: torch.Tensor, scale: float) -> torch.Tensor:
    """A mask as what fp32 numbers are multiplied with: the scale where it is true, 0 elsewhere."""
    return torch.from_numpy(np.multiply(keep.numpy(), np.float32(scale)))


def masked(x: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
    """x scaled where the mask is true, 0 elsewhere; a mask of `factors` has the scale in it."""
    if keep.dtype != torch.bool:
        return x * keep
    bits = _BITS[x.dtype]
    ones = keep.to(bits).neg_()  # all bits set, or none
    return (x.contiguous().view(bits) & ones).view(x.dtype).mul_(scale)
