"""RMSNorm and rotary positions on CPUs, for training: fewer passes over activations than autograd's.

Decoders of Llama's kind write both as a dozen small steps, each with a buffer of its own, forward and backward, and in
fp32 under autocast; the linear layers that read a norm's result cast it, each for itself. Here each is one step, and
what it gives is in the precision of those layers at once. It serves transformers' models without touching one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}
"""Model types whose module in transformers has Llama's RMSNorm and rotary positions, by the prefix of its classes."""


def modeling(model: torch.nn.Module) -> tuple[Any, str] | None:
    """The module in transformers of a decoder whose parts are known here, and the name of its norm; or None."""
    for name, prefix in FAMILIES.items():
        known = sys.modules.get(f"transformers.models.{name}.modeling_{name}")  # a model of it has imported it
        if known is not None and any(type(module) is getattr(known, f"{prefix}RMSNorm") for module in model.modules()):
            return known, f"{prefix}RMSNorm"
    return None


@contextmanager
def fast_decoder_parts(model: torch.nn.Module, device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which a decoder's norms and rotary positions on the CPU take the short way while it trains."""
    found = modeling(model) if wanted and device.type == "cpu" else None
    if found is None:
        yield
        return
    known, norm_name = found
    norm = getattr(known, norm_name)
    norms, rotates = norm.forward, known.apply_rotary_pos_emb

    def forward(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() or {hidden_states.dtype, layer.weight.dtype} != {torch.float32}:
            return norms(layer, hidden_states)
        out: torch.Tensor = _Norm.apply(hidden_states, layer.weight, layer.variance_epsilon, _dtype())
        return out

    def rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
        if not torch.is_grad_enabled() or {q.dtype, k.dtype} != {_dtype()}:
            return rotates(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)

    norm.forward, known.apply_rotary_pos_emb = forward, rotated
    try:
        yield
    finally:
        norm.forward, known.apply_rotary_pos_emb = norms, rotates


def _dtype() -> torch.dtype:
    """What linear layers compute in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


class _Norm(torch.autograd.Function):
    """x weight / sqrt(mean(x²) + eps), [..., D] fp32 to `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        rate = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (x * rate).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (x * rate).mul_(grad).flatten(0, -2).sum(0)
        to_x = grad * weight
        share = (to_x * x).sum(-1, keepdim=True).mul_(rate.pow(3)).div_(x.shape[-1])
        to_x.mul_(rate).addcmul_(x, share, value=-1)
        return to_x, to_weight, None, None


class _Rotated(torch.autograd.Function):
    """Pairs of a head's elements (i, i + D/2) turned by an angle each, [B, H, T, D].

    Both halves of cos and sin are alike, as every family here makes them, so turning back is the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out.to(x.dtype)
