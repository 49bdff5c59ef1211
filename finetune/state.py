"""What a run holds at one moment: trainable weights, optimizer state by parameter name, and what the adapter keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from finetune.errors import CheckpointError

# Between a parameter's name and the name of its optimizer state; no parameter name holds it.
STATE_OF = "|"


@dataclass(frozen=True)
class State:
    """Tensors by file, and numbers, of one moment of a run, on the CPU.

    Attributes:
        tensors: file stem (model, optimizer, adapter) to named tensors.
        numbers: JSON-able rest: parameter groups, aliases of tied weights, the fp16 scaler.
    """

    tensors: dict[str, dict[str, torch.Tensor]]
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What the adapter keeps besides weights: tensors, and JSON-able values."""
        return self.tensors.get("adapter", {}), self.numbers.get("adapter", {})


def capture(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    adapter: tuple[dict[str, torch.Tensor], dict[str, Any]] = ({}, {}),
) -> State:
    """The trainable weights, all buffers, the optimizer's state keyed by parameter name, and what the adapter keeps.

    What the optimizer holds counts as trainable, also while it is frozen: weights of before a layer was unfrozen are
    part of what was the best then. Collective: every process calls it; only the first gets the tensors when the model
    is sharded.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    with _trainable(optimizer):
        found = cast(dict[str, torch.Tensor], get_model_state_dict(model, options=options))
    weights, aliases = _without_aliases(found)
    tensors = {"model": weights}
    numbers: dict[str, Any] = {"aliases": aliases}
    if optimizer is not None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer, options=options))
        tensors["optimizer"] = {
            f"{name}{STATE_OF}{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, entries in state.get("state", {}).items()
            for key, value in entries.items()
            if value is not None
        }
        numbers["param_groups"] = state.get("param_groups", [])
    kept, values = adapter
    if kept:
        tensors["adapter"] = kept
    if values:
        numbers["adapter"] = values
    return State(tensors, numbers)


def restore(state: State, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a captured state back. Collective."""
    weights = dict(state.tensors["model"])
    weights.update({alias: weights[name] for alias, name in state.numbers["aliases"].items()})
    options = StateDictOptions(full_state_dict=True, strict=False)
    result = set_model_state_dict(model, cast(dict[str, Any], weights), options=options)
    if result.unexpected_keys:
        raise CheckpointError(
            f"The checkpoint has weights that the model lacks: {', '.join(result.unexpected_keys[:5])}."
        )
    if optimizer is not None:
        entries: dict[str, dict[str, Any]] = {}
        for key, value in state.tensors["optimizer"].items():
            name, _, kind = key.rpartition(STATE_OF)
            entries.setdefault(name, {})[kind] = value
        # torch moves only what it knows; `step` stays a CPU tensor unless the optimizer is capturable.
        set_optimizer_state_dict(
            model,
            optimizer,
            cast(Any, {"state": entries, "param_groups": state.numbers["param_groups"]}),
            # Strict, it would ask for the state of parameters that were not unfrozen yet, which have none.
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
        # torch begins by giving every parameter the state of one step; those begin anew when they are unfrozen.
        for saved, group in zip(state.numbers["param_groups"], optimizer.param_groups, strict=True):
            for name, parameter in zip(saved["params"], group["params"], strict=True):
                if name not in entries:
                    optimizer.state.pop(parameter, None)


def not_finite(model: torch.nn.Module) -> str | None:
    """The name of a parameter that holds a NaN or an infinity, or None; of a sharded one, each process sees a part."""
    for name, parameter in model.named_parameters():
        own = parameter.detach()
        own = own.to_local() if isinstance(own, DTensor) else own
        if not own.numel() or not own.is_floating_point() or own.sum().isfinite():
            continue  # a sum is read at the memory's pace; it is finite only where every entry is
        # Large finite entries may add up to an infinity. The norm makes no copy, and is as finite as its largest entry.
        if not torch.linalg.vector_norm(own, torch.inf).isfinite():
            return name
    return None


@contextmanager
def _trainable(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    groups = optimizer.param_groups if optimizer is not None else []
    frozen = [parameter for group in groups for parameter in group["params"] if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _without_aliases(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tied weights once (safetensors stores no two names for one memory), and which name stands for which."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    unique: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            # A copy: training goes on while the checkpoint is written, and a view would drag its whole storage along.
            unique[name] = tensor.detach().clone()
    return unique, aliases
