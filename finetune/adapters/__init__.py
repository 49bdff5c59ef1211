"""Adapters: what of the pretrained model is trained. One module a family; `Adapter` is the shape they share."""

from __future__ import annotations

import difflib

from finetune.adapters.adalora import AdaLoRA
from finetune.adapters.adapter import Adapter
from finetune.adapters.any_peft import AnyPeft
from finetune.adapters.full import Frozen, Full
from finetune.adapters.ia3 import IA3
from finetune.adapters.layers import BitFit, Layers
from finetune.adapters.lora import LoRA
from finetune.adapters.virtual_tokens import PrefixTuning, PromptTuning
from finetune.errors import ConfigError

ADAPTERS: tuple[type[Adapter], ...] = (
    Full,
    Frozen,
    Layers,
    BitFit,
    LoRA,
    AdaLoRA,
    IA3,
    PromptTuning,
    PrefixTuning,
    AnyPeft,
)


def adapter_named(name: str) -> Adapter:
    """The adapter with its default settings.

    Raises:
        ConfigError: no adapter has that name; lists those that there are.
    """
    kinds = {kind.model_fields["name"].default: kind for kind in ADAPTERS}
    if name not in kinds:
        near = difflib.get_close_matches(name.lower(), kinds, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{name} is not an adapter.", f"{hint}There are: {', '.join(kinds)}.")
    return kinds[name]()


__all__ = [
    "IA3",
    "AdaLoRA",
    "Adapter",
    "AnyPeft",
    "BitFit",
    "Frozen",
    "Full",
    "Layers",
    "LoRA",
    "PrefixTuning",
    "PromptTuning",
    "adapter_named",
]
