"""Which modules of a model an adapter goes into: by name, by regular expression, or all that are linear."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task

ALL_LINEAR, ALL_CONV = "all-linear", "all-conv"


def find_targets(
    model: torch.nn.Module, patterns: Sequence[str], task: Task, kinds: tuple[str, ...], setting: str
) -> list[str]:
    """Full names of the modules that the patterns mean, in the model's order; every pattern must mean some.

    Args:
        patterns: `all-linear`, `all-conv`, a module's name or the end of it (`query`, `output.dense`), or a regular
            expression for the whole name.
        kinds: class names of modules that the adapter can go into; others are refused by name and passed over by a
            regular expression.
        setting: the key that the patterns are from, for messages.

    Raises:
        ConfigError: a pattern that matches nothing, only the head, or a module of another kind.
    """
    names = [name for name, _ in model.named_modules() if name]
    modules = dict(model.named_modules())
    others = (*task.head_modules, *task.fixed_modules)
    heads = {name for name in names if any(f"{name}.".startswith(f"{other}.") for other in others)}
    output = _output_embeddings(model)
    found: set[str] = set()
    for pattern in patterns:
        matched = _matches(pattern, names, modules, output, heads, setting)
        usable = [name for name in matched if name not in heads and kind(modules[name]) in kinds]
        if not usable:
            _refuse(pattern, matched, modules, heads, kinds, names, setting)
        found.update(usable)
    return [name for name in names if name in found]


def kind(module: torch.nn.Module) -> str:
    """A module's class as PEFT tells them apart: subclasses of a layer count as that layer."""
    for known in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d):
        if isinstance(module, known):
            return known.__name__
    return type(module).__name__


def rank_limit(module: torch.nn.Module) -> int:
    """The rank of the module's weight as a matrix, at most; a convolution's is [out, in x kernel]."""
    weight: Any = module.weight
    return min(weight.shape[0], weight.numel() // weight.shape[0])


def check_rank(modules: Mapping[str, torch.nn.Module], rank: int, setting: str) -> None:
    """Refuse a rank that one of the matrices can't have.

    Raises:
        ConfigError: names the smallest matrix.
    """
    name, module = min(modules.items(), key=lambda item: rank_limit(item[1]))
    if rank > rank_limit(module):
        weight: Any = module.weight
        shape = " x ".join(map(str, weight.shape))
        raise ConfigError(
            f"{setting}={rank} is above the rank of {name}, whose weight is {shape}.",
            f"Set {setting}={rank_limit(module)} or less, or leave that module out of adapter.targets.",
        )


def check_patterns(patterns: Iterable[str], targets: Sequence[str], setting: str) -> None:
    """Refuse a key of a rank or alpha pattern that none of the targets has; PEFT would ignore it.

    Raises:
        ConfigError: names the key.
    """
    for pattern in patterns:
        try:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):
                raise ConfigError(
                    f"{setting} has {pattern!r}, which matches none of the {len(targets)} targets.",
                    f"A key matches the end of a target's name; the first target is {targets[0]}.",
                )
        except re.error as error:
            raise ConfigError(
                f"{setting} has {pattern!r}, which is no regular expression: {error}.",
                "Write the end of a module's name, for example query.",
            ) from None


def pattern_value(patterns: Mapping[str, int], name: str, default: int) -> int:
    """A target's own value, as PEFT finds it: the first key that matches the end of its name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _matches(
    pattern: str,
    names: Sequence[str],
    modules: Mapping[str, torch.nn.Module],
    output: torch.nn.Module | None,
    heads: set[str],
    setting: str,
) -> list[str]:
    if pattern in (ALL_LINEAR, ALL_CONV):
        wanted = ("Linear", "Conv1D") if pattern == ALL_LINEAR else ("Conv1d", "Conv2d", "Conv3d")
        # The output layer of a language model is often the embedding itself, and never meant by "all".
        return [
            name
            for name in names
            if kind(modules[name]) in wanted and modules[name] is not output and name not in heads
        ]
    named = [name for name in names if f".{name}".endswith(f".{pattern}")]
    if named:
        return named
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(
            f"{setting}: {pattern!r} is neither a module of this model nor a regular expression ({error}).",
            "Write the end of a module's name, for example query.",
        ) from None


def _refuse(
    pattern: str,
    matched: Sequence[str],
    modules: Mapping[str, torch.nn.Module],
    heads: set[str],
    kinds: tuple[str, ...],
    names: Sequence[str],
    setting: str,
) -> None:
    if not matched:
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names if kind(modules[name]) in kinds))
        near = difflib.get_close_matches(pattern, [*ends, *names], n=1)
        raise ConfigError(
            f"{setting} has {pattern!r}, which matches no module of this model.",
            (f"Did you mean {near[0]}? " if near else "") + f"There are: {', '.join(ends[:20])}.",
        )
    if all(name in heads for name in matched):
        raise ConfigError(
            f"{setting} has {pattern!r}, which is only the head ({matched[0]}).",
            "The head is trained in full by every adapter; leave it out.",
        )
    other = next(name for name in matched if name not in heads)
    raise ConfigError(
        f"{setting} has {pattern!r}, but {other} is a {kind(modules[other])}.",
        f"This adapter goes into {', '.join(kinds)}.",
    )


def _output_embeddings(model: torch.nn.Module) -> torch.nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    return found if isinstance(found, torch.nn.Module) else None
