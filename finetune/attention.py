"""Attention in low precision on CPUs made of plain products, where torch's kernel is slow.

Causal attention while training, in blocks; and attention without gradients over short rows, for features that are
computed once. It serves every model without touching one, as `finetune.dropout` does. What it computes is what
transformers' `eager` attention computes: scores are rounded to bf16 once, which torch's kernel avoids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from finetune.dropout import masked_scores, softmax

# Rows of scores that are made at once: keys beyond the last of them cost nothing.
BLOCK = 256
# Beyond that the scores, which stay for the backward pass, take more memory than they save time.
LONGEST = 1024
# Longest rows without gradients: 128 rows of 28 tokens took 0.52 of torch's time, 32 of 256 tokens 0.84.
LONGEST_WITHOUT_GRADIENTS = 256


@contextmanager
def fast_attention(device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which attention in bf16 on the CPU is made of plain products where they pay; nothing elsewhere."""
    if not wanted or device.type != "cpu":
        yield
        return
    before = F.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        longest = LONGEST if torch.is_grad_enabled() else LONGEST_WITHOUT_GRADIENTS
        usual = query.dim() == 4 and query.shape[2] == key.shape[2] <= longest and low == torch.bfloat16
        alike = query.shape[1] == key.shape[1]
        causal = is_causal and attn_mask is None and torch.is_grad_enabled() and (enable_gqa or alike)
        both_ways = not is_causal and not torch.is_grad_enabled() and alike
        if dropout_p or not usual or not (causal or both_ways):
            return before(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        with torch.autocast("cpu", enabled=False):
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            query, key, value = query.to(low) * factor, key.to(low), value.to(low)
            if causal:
                return causal_attention(query, key, value)
            return torch.matmul(softmax(masked_scores(query, key, attn_mask)), value)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def causal_attention(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor) -> torch.Tensor:
    """Softmax(query keyᵀ) value over the keys up to each query, [B, H, T, D]; H/G heads share a key and a value."""
    batch, heads, length, width = query_BHTD.shape
    groups = key_BGTD.shape[1]
    query_BGRTD = query_BHTD.reshape(batch, groups, heads // groups, length, width)
    parts = []
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        # The heads of a group lie under each other, as rows of one product.
        rows_BGXD = query_BGRTD[:, :, :, first:last].reshape(batch, groups, -1, width)
        scores_BGXS = torch.matmul(rows_BGXD, key_BGTD[:, :, :last].transpose(-2, -1))
        later_TS = torch.ones(last - first, last, dtype=torch.bool).triu(first + 1)
        barred_TS = torch.zeros(later_TS.shape, dtype=scores_BGXS.dtype).masked_fill_(later_TS, -torch.inf)
        scores_BGRTS = scores_BGXS.view(batch, groups, heads // groups, last - first, last) + barred_TS
        shares_BGXS = scores_BGRTS.softmax(-1).view(scores_BGXS.shape)
        found_BGXD = torch.matmul(shares_BGXS, value_BGTD[:, :, :last])
        parts.append(found_BGXD.view(batch, heads, last - first, width))
    return torch.cat(parts, dim=2)
