"""LoRA's linear layers on CPUs, for training: fewer passes over activations than in PEFT.

PEFT scales in a pass of its own and adds in another, and in low precision casts a layer's input to the adapter's fp32
for dropout and back for its products. Here the input stays as it is, and product, scale and sum are one call. (Dropping
out before or after the cast gives the same bits; the sum is rounded once in place of twice.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from finetune.dropout import is_fast, keep_mask, masked

PEFTS_LAYERS = "peft.tuners.lora.layer"


@contextmanager
def fast_lora(device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which LoRA's linear layers on the CPU take the short way; nothing elsewhere."""
    # Imported by whoever made such layers: without them there is nothing to do.
    layers = sys.modules.get(PEFTS_LAYERS)
    if not wanted or device.type != "cpu" or layers is None:
        yield
        return
    pefts: Callable[..., torch.Tensor] = layers.Linear.forward

    def forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        usual = torch.is_grad_enabled() and not args and not kwargs and is_plain(layer)
        if not usual or (dtype := _dtype(layer, x)) is None or (_drops(layer) and not is_fast()):
            return pefts(layer, x, *args, **kwargs)
        return _forward(layer, x, dtype)

    layers.Linear.forward = forward
    try:
        yield
    finally:
        layers.Linear.forward = pefts


def is_plain(layer: Any) -> bool:
    """Whether a layer of PEFT's is one frozen linear layer and one LoRA of two matrices without biases, no more."""
    layers = sys.modules.get(PEFTS_LAYERS)
    if layers is None or type(layer) is not layers.Linear or type(layer.base_layer) is not torch.nn.Linear:
        return False
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    name, base = layer.active_adapters[0], layer.base_layer
    if name not in layer.lora_A or name in layer.lora_variant:  # DoRA and its kin
        return False
    dropout = layer.lora_dropout[name]
    return (
        not any(parameter.requires_grad for parameter in base.parameters())
        and (type(dropout) is torch.nn.Identity or (type(dropout) is torch.nn.Dropout and dropout.p < 1))
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _dtype(layer: Any, x: torch.Tensor) -> torch.dtype | None:
    """What the layer computes in: autocast's, or fp32 where all is in it; None where PEFT has casts of its own."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    parts = (x, layer.base_layer.weight, layer.lora_A[layer.active_adapters[0]].weight)
    return torch.float32 if all(part.dtype == torch.float32 for part in parts) else None


def _drops(layer: Any) -> float:
    """Share of the adapter's inputs that is dropped in this pass."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0


def _forward(layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    name, base = layer.active_adapters[0], layer.base_layer
    bias = None if base.bias is None else base.bias.to(dtype)
    keep, scale = None, 1.0
    if p := _drops(layer):
        keep, scale = keep_mask(x.shape, p), 1 / (1 - p)
    matrices = (layer.lora_A[name].weight, layer.lora_B[name].weight)
    out: torch.Tensor = _LoraLinear.apply(
        x.to(dtype), base.weight.to(dtype), bias, *matrices, layer.scaling[name], keep, scale
    )
    return out


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + bias + scaling · drop(x) Aᵀ Bᵀ; shapes [..., in], [out, in], [out], [r, in], [out, r] to [..., out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        keep: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            keep = None if keep is None else keep.view(rows.shape)
            dropped = rows if keep is None else masked(rows, keep, scale)
            cast_down, cast_up = down.to(x.dtype), up.to(x.dtype)
            hidden = dropped @ cast_down.t()
            out = F.linear(rows, weight, bias).addmm_(hidden, cast_up.t(), alpha=scaling)
        ctx.save_for_backward(weight, cast_down, cast_up, dropped, hidden, keep)
        ctx.scaling, ctx.scale, ctx.dtype = scaling, scale, down.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, down, up, dropped, hidden, keep = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            rows = grad.reshape(-1, grad.shape[-1])
            to_hidden = (rows @ up).mul_(ctx.scaling)
            to_up = (hidden.t() @ rows).mul_(ctx.scaling).t().to(ctx.dtype)  # the short side first: half the time
            to_down = (to_hidden.t() @ dropped).to(ctx.dtype)
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = rows @ weight
                if keep is None:
                    to_x.addmm_(to_hidden, down)
                else:
                    to_x.add_(masked(to_hidden @ down, keep, ctx.scale))
                to_x = to_x.view(*grad.shape[:-1], to_x.shape[-1])
        return to_x, None, None, to_down, to_up, None, None, None
