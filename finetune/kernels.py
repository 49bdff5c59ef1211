"""What an update computes with instead of torch's own functions, each behind a key of `train`; CPUs only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from finetune.attention import fast_attention
from finetune.decoder_parts import fast_decoder_parts, modeling
from finetune.dropout import fast_dropout
from finetune.first_token import first_token_only, last_layer
from finetune.low_rank import fast_lora, is_plain
from finetune.padding import has_encoder, without_padding

if TYPE_CHECKING:
    from finetune.config import TrainSettings


class Kernels:
    """The faster functions that the settings ask for, put in place while an update runs."""

    def __init__(self, device: torch.device, settings: TrainSettings) -> None:
        self.device = device
        self.settings = settings

    def in_use(self, model: torch.nn.Module, low_precision: bool, causal: bool) -> list[str]:
        """Keys of those that this model's updates make use of.

        Args:
            causal: its attention looks at earlier tokens only.
        """
        if self.device.type != "cpu":
            return []
        drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
        of_use = {
            "fast_dropout": drops,
            "fast_attention": causal and low_precision,
            "fast_lora": any(is_plain(module) for module in model.modules()),
            "fast_decoder_parts": modeling(model) is not None,
            "skip_padding": self._skips_padding(model),
            "skip_unread": last_layer(model) is not None and not self._skips_padding(model),
            "reuse_memory": True,
        }
        return [f"train.{key}" for key, useful in of_use.items() if useful and getattr(self.settings, key)]

    def reads_first_token(self, model: torch.nn.Module) -> bool:
        """Whether the features of a frozen encoder cost one token of its last layer."""
        cpu, skips_padding = self.device.type == "cpu", self._skips_padding(model)
        return cpu and self.settings.skip_unread and not skips_padding and last_layer(model, frozen=True) is not None

    @contextmanager
    def used(self, model: torch.nn.Module, frozen: bool = False) -> Iterator[None]:
        """A context for forward and backward passes of training, and for those that keep a frozen encoder's features.

        Args:
            frozen: these are kept, of the vector that the head reads.
        """
        device, settings, skips_padding = self.device, self.settings, self._skips_padding(model)
        with (
            fast_dropout(device, settings.fast_dropout),
            fast_attention(device, settings.fast_attention),
            fast_lora(device, settings.fast_lora),
            fast_decoder_parts(model, device, settings.fast_decoder_parts),
            without_padding(model, device, skips_padding),
            # One of the two: without padding there is no row whose first token could be taken.
            first_token_only(model, device, settings.skip_unread and not skips_padding, frozen),
        ):
            yield

    def _skips_padding(self, model: torch.nn.Module) -> bool:
        """Batches of like lengths have next to none."""
        return self.settings.skip_padding and not self.settings.length_buckets and has_encoder(model)
