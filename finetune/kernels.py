"""What an update computes with instead of torch's own functions, each behind a key of `train`; CPUs only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from finetune.attention import fast_attention
from finetune.dropout import fast_dropout

if TYPE_CHECKING:
    from finetune.config import TrainSettings


class Kernels:
    """The faster functions that the settings ask for, put in place while an update runs."""

    def __init__(self, device: torch.device, settings: TrainSettings) -> None:
        self.device = device
        self.settings = settings
        self.casts = FrozenCasts()

    def in_use(self, model: torch.nn.Module, low_precision: bool, causal: bool) -> list[str]:
        """Keys of those that this model's updates make use of.

        Args:
            causal: its attention looks at earlier tokens only.
        """
        if self.device.type != "cpu":
            return []
        drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
        frozen = any(
            isinstance(module, torch.nn.Linear) and not module.weight.requires_grad for module in model.modules()
        )
        of_use = {
            "fast_dropout": drops,
            "fast_attention": causal and low_precision,
            "cast_frozen_once": frozen and low_precision,
            "reuse_memory": True,
        }
        return [f"train.{key}" for key, useful in of_use.items() if useful and getattr(self.settings, key)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context for forward and backward passes of training."""
        device, settings = self.device, self.settings
        with (
            fast_dropout(device, settings.fast_dropout),
            fast_attention(device, settings.fast_attention),
            self.casts.used(device, settings.cast_frozen_once),
        ):
            yield


class FrozenCasts:
    """Matrices that are not trained, in low precision, cast once: autocast keeps the casts of trained ones alone.

    LoRA casts every weight of its base at each use otherwise, a language model's head once for every chunk of tokens.
    The same bits come out; each matrix stands in memory a second time, in half the bytes.
    """

    def __init__(self) -> None:
        # With the original, so that its address stays its own, and the version that was cast.
        self._casts: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    @contextmanager
    def used(self, device: torch.device, wanted: bool) -> Iterator[None]:
        """A context in which `F.linear`, and with it `nn.Linear`, takes the kept casts; nothing but on CPUs."""
        if not wanted or device.type != "cpu":
            yield
            return
        before = F.linear

        def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            frozen = isinstance(weight, torch.nn.Parameter) and not weight.requires_grad
            if frozen and weight.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
                weight = self._cast(weight, torch.get_autocast_dtype("cpu"))
            return before(input, weight, bias)

        F.linear = linear
        try:
            yield
        finally:
            F.linear = before

    def _cast(self, weight: torch.Tensor, low: torch.dtype) -> torch.Tensor:
        kept = self._casts.get(id(weight))
        if kept is None or kept[1] != weight._version or kept[2].dtype != low:
            kept = self._casts[id(weight)] = (weight, weight._version, weight.detach().to(low))
        return kept[2]
