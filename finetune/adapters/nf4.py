"""Frozen linear layers in 4 bits: NF4 of QLoRA (arXiv:2305.14314), with bitsandbytes' kernels.

Exact on CPUs, where it was tested (bitsandbytes 0.50.2). On GPUs it was not run; its speed and memory are not measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from finetune.errors import ConfigError

# Weights that share one fp32 scale, as in the paper; its second quantisation, of the scales, is left out.
BLOCK = 64


def check_nf4() -> None:
    """Refuse a machine where bitsandbytes doesn't run.

    Raises:
        ConfigError: it is not installed, or has no kernels for this device.
    """
    fix = "Leave adapter.quantize out: adapter=lora trains the same ranks beside weights in full precision."
    try:
        NF4Linear(torch.nn.Linear(BLOCK, BLOCK)).weight  # noqa: B018
    except ImportError:
        raise ConfigError(
            "adapter.quantize=nf4 needs bitsandbytes, which is not installed.", f"pip install bitsandbytes. Or: {fix}"
        ) from None
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"adapter.quantize=nf4: bitsandbytes doesn't run on this machine: {reason}", fix) from None


class NF4Linear(torch.nn.Linear):
    """A linear layer whose weight stands in memory as 4-bit codes, and whole only while it is multiplied.

    They are in no checkpoint: they are a function of the pretrained weight, which is quantised again.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        from bitsandbytes import functional as kernels

        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        # A block a row: on CPUs bitsandbytes 0.50 takes the wrong scales where a row is no whole number of blocks.
        blocks = linear.weight.detach().float().reshape(-1, BLOCK)
        codes, state = kernels.quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
        self.register_parameter("bias", linear.bias)
        # No buffers: DDP would send them at every update, and a checkpoint look for them.
        self.codes, self.scales, self.levels = codes, state.absmax, state.code

    def _apply(self, fn: Any, recurse: bool = True) -> NF4Linear:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.codes.device)).device  # moved, but never cast
        self.codes, self.scales, self.levels = (x.to(device) for x in (self.codes, self.scales, self.levels))
        return self

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight that the codes mean, [out, in] in fp32."""
        from bitsandbytes import functional as kernels

        state = kernels.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features * self.in_features // BLOCK, BLOCK)),
            code=self.levels,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=torch.float32,
        )
        found: torch.Tensor = kernels.dequantize_4bit(self.codes, state)
        return found.view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(input, self)
        return product

    def plain(self) -> torch.nn.Linear:
        """The same layer with its weight in fp32."""
        linear = torch.nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = torch.nn.Parameter(self.weight, requires_grad=False)
        linear.bias = self.bias
        return linear


class _Product(torch.autograd.Function):
    """x Wᵀ + b; the weight is multiplied out once more in the backward pass, or every layer's would stay till then."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: NF4Linear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, input.dtype
        return F.linear(input, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (grad @ ctx.layer.weight.to(grad.dtype)).to(ctx.dtype), None


def quantize(model: torch.nn.Module, names: list[str]) -> None:
    """Put the named linear layers into 4 bits, in place."""
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        model.set_submodule(name, NF4Linear(linear))


def dequantize(model: torch.nn.Module) -> torch.nn.Module:
    """Put layers of 4 bits back to fp32, in place; their weights stay those that the codes mean."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear):
            model.set_submodule(name, module.plain())
    return model
