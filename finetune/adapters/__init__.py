"""Adapters: what of the pretrained model is trained. One module a family; `Adapter` is the shape they share."""

from __future__ import annotations

from finetune.adapters.adapter import Adapter
from finetune.adapters.full import Frozen, Full
from finetune.errors import ConfigError

ADAPTERS: tuple[type[Adapter], ...] = (Full, Frozen)


def adapter_named(name: str) -> Adapter:
    """The adapter with its default settings.

    Raises:
        ConfigError: no adapter has that name; lists those that there are.
    """
    kinds = {kind.model_fields["name"].default: kind for kind in ADAPTERS}
    if name not in kinds:
        raise ConfigError(f"{name} is not an adapter.", f"There are: {', '.join(sorted(kinds))}.")
    return kinds[name]()


__all__ = ["Adapter", "Frozen", "Full", "adapter_named"]
