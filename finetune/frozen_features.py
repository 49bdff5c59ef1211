"""A frozen encoder's output, computed once for every row: each epoch then trains the head alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from finetune.adapters import Frozen
from finetune.data.batching import RowKey
from finetune.evaluation.predict import Predict, predict_rows, to_device
from finetune.kernels import Kernels
from finetune.launch import say

if TYPE_CHECKING:
    from finetune.evaluation.kept import KeptOutputs
    from finetune.task import Batch, Rows, Task
    from finetune.trainer import Trainer

# What is kept of the encoder's output: its pooled vector, or the first token's. Heads read one of them.
POOLED, FIRST_TOKEN = "pooled", "first token"
# A few tell: that two ways of reading agree on any row to fp32's last digits is no accident. Large images are slow.
PROBE_ROWS = 4
# Of the largest logit, in fp32: the same numbers went through the same head, in a batch of another shape.
TOLERANCE = 1e-5


@contextmanager
def reused_features(trainer: Trainer, kept_outputs: KeptOutputs | None = None) -> Iterator[None]:
    """A context in which `trainer` trains a frozen model's head on features that were computed once.

    Exact up to rounding: dropout and BatchNorm of a frozen encoder are in evaluation mode, so that it gives every epoch
    the same. Features are computed for whole evaluation batches, in the precision of training, and are the same for any
    number of processes. Where that can't be (rows are augmented, the encoder is trained in part, the head reads more
    than one vector of it), nothing changes, and a note says so.

    Args:
        kept_outputs: reads them from the cache where an earlier run kept them; None computes them.
    """
    task, model = trainer.task, trainer.model
    if not _asked(trainer):
        yield
        return
    obstacle, kept = what_is_kept(task, model)
    if obstacle:
        say(trainer.accelerator, f"note: the frozen encoder runs in every epoch, because {obstacle}")
        yield
        return
    model.to(trainer.accelerator.device)
    body_name = cast(Any, model).base_model_prefix
    body = getattr(model, body_name)
    predict = predict_rows if kept_outputs is None else functools.partial(kept_outputs, frozen=body)

    def computed(split: str) -> KeptRows:
        setattr(model, body_name, body)
        try:
            return _computed(trainer, task, split, kept, predict)
        finally:
            setattr(model, body_name, _Kept(kept))

    rows = _WhenAsked({**task.rows, "train": computed("train")}, "valid", computed)
    if trainer.accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        rows.setdefault("valid", computed("valid"))  # now: these take the model's parts over when training starts
    trainer.task = replace(
        task, rows=rows, collate=_Collate(cast(Any, model).main_input_name, _other_keys(task, model))
    )
    try:
        yield
    finally:
        setattr(model, body_name, body)
        trainer.task = task


def reuses_features(trainer: Trainer) -> bool:
    """Whether `reused_features` will compute them once."""
    return _asked(trainer) and not what_is_kept(trainer.task, trainer.model)[0]


def _asked(trainer: Trainer) -> bool:
    return isinstance(trainer.adapter, Frozen) and trainer.adapter.reuse_features


def what_is_kept(task: Task, model: torch.nn.Module) -> tuple[str, str]:
    """Why features can't be reused ("" when they can), and what of the encoder's output they are."""
    if not all(getattr(task.rows[name], "fixed", False) for name in ("train", "valid")):
        return "training rows are varied anew each epoch", ""
    if not hasattr(model, "base_model_prefix") or not hasattr(model, cast(Any, model).base_model_prefix):
        return f"{type(model).__name__} does not keep encoder and head apart", ""
    body_name = cast(Any, model).base_model_prefix
    body = getattr(model, body_name)
    if any(parameter.requires_grad for parameter in body.parameters()):
        return "part of it is trained", ""
    keys = [RowKey(0, index) for index in range(min(PROBE_ROWS, len(task.rows["valid"])))]
    device = next(model.parameters()).device
    batch = to_device(task.collate(task.rows["valid"].__getitems__(keys)), device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            whole_BC, found = _passed(task, model, batch)
            for kept, features in found.items():
                main = cast(Any, model).main_input_name
                small = _Collate(main, _other_keys(task, model)).of(features, batch["labels"])
                setattr(model, body_name, _Kept(kept))
                try:
                    from_kept_BC = task.logits(model, small)
                except (IndexError, RuntimeError, ValueError, TypeError, AttributeError, KeyError):
                    continue  # this head reads something else of the encoder's output
                finally:
                    setattr(model, body_name, body)
                if whole_BC.shape == from_kept_BC.shape and _close(whole_BC, from_kept_BC):
                    return "", kept
    finally:
        model.train(training)
    return "the head reads more than one vector of its output", ""


def _close(whole_BC: torch.Tensor, other_BC: torch.Tensor) -> bool:
    return float((whole_BC - other_BC).abs().max()) <= TOLERANCE * max(1.0, float(whole_BC.abs().max()))


def _passed(task: Task, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of a batch, and of the encoder's output what can be kept, each [rows, ...]."""
    found: dict[str, torch.Tensor] = {}

    def look(_: torch.nn.Module, __: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if (pooled := getattr(output, "pooler_output", None)) is not None:
            found[POOLED] = pooled
        if hidden is not None and hidden.ndim == 3:
            found[FIRST_TOKEN] = hidden[:, 0]

    handle = getattr(model, cast(Any, model).base_model_prefix).register_forward_hook(look)
    try:
        return task.logits(model, batch), found
    finally:
        handle.remove()


class _WhenAsked(dict[str, "Rows"]):
    """Rows by split, of which one is computed when it is asked for first: not before training starts."""

    def __init__(self, rows: Mapping[str, Rows], later: str, compute: Callable[[str], Rows]) -> None:
        super().__init__({name: some for name, some in rows.items() if name != later})
        self.later, self.compute = later, compute

    def __missing__(self, name: str) -> Rows:
        if name != self.later:
            raise KeyError(name)
        self[name] = self.compute(name)
        return self[name]


def _computed(trainer: Trainer, task: Task, split: str, kept: str, predict: Predict) -> KeptRows:
    rows = task.rows[split]
    shapes: list[torch.Size] = []

    def outputs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with trainer.accelerator.autocast():
            features = _passed(task, model, batch)[1][kept]
        shapes.append(features.shape[1:])
        return features.flatten(1)

    with Kernels(trainer.accelerator.device, trainer.settings).used(trainer.model, frozen=True):
        found_RK = predict(trainer.model, rows, task.collate, outputs, trainer.accelerator, f"features of {split}")
    return KeptRows(rows, found_RK.reshape(len(rows), *shapes[0]))


def _other_keys(task: Task, model: torch.nn.Module) -> tuple[str, ...]:
    """Inputs besides the main one and the labels: the encoder that read them is out of the way."""
    batch = task.collate(task.rows["valid"].__getitems__([RowKey(0, 0)]))
    return tuple(name for name in batch if name not in ("labels", cast(Any, model).main_input_name))


@dataclass(frozen=True)
class KeptRows:
    """Rows by their features.

    Attributes:
        rows: what the features were computed from.
        features: [rows, ...] fp32.
    """

    rows: Rows
    features: np.ndarray

    @property
    def lengths(self) -> np.ndarray | None:
        return self.rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        labels = cast(Any, self.rows).labels
        return [{"features": self.features[key.index], "labels": labels[key.index]} for key in keys]


@dataclass(frozen=True)
class _Collate:
    """Features take the place of the model's main input."""

    main_input: str
    others: tuple[str, ...]

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        features = torch.from_numpy(np.stack([row["features"] for row in rows]))
        return self.of(features, torch.as_tensor(np.array([row["labels"] for row in rows])))

    def of(self, features: torch.Tensor, labels_B: torch.Tensor) -> Batch:
        unread = torch.ones((len(features), 1), dtype=torch.int64, device=features.device)
        return {self.main_input: features, "labels": labels_B, **dict.fromkeys(self.others, unread)}


class _Kept(torch.nn.Module):
    """Stands where the encoder stood, and returns the features that it is given."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features = inputs[0] if inputs else next(value for value in named.values() if value is not None)
        sequence = features.flatten(1)[:, None]
        return BaseModelOutputWithPooling(
            last_hidden_state=cast(Any, sequence), pooler_output=cast(Any, features if self.kept == POOLED else None)
        )
