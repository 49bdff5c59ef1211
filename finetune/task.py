"""What a recipe builds and the trainer trains: a model, its rows, and plain functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from finetune.data.batching import RowKey

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.data.loader import LoadedData
    from finetune.data.sources import ModelFiles
    from finetune.evaluation.baselines import Baseline
    from finetune.evaluation.predict import Predict

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]


class Rows(Protocol):
    """Rows that a batch can be made of.

    Rows that know more say it: `fixed`, that they are the same in every epoch; `token_ids`, every id that occurs in
    them, [tokens].
    """

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each row, [rows], for length buckets; None when every row costs the same."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        """The rows of the keys, in that order; anything random in them is a function of (seed, epoch, index)."""


@dataclass(frozen=True)
class SomeRows:
    """Some rows of others, by index."""

    rows: Rows
    chosen: np.ndarray

    @property
    def lengths(self) -> np.ndarray | None:
        return None if self.rows.lengths is None else self.rows.lengths[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return self.rows.__getitems__([RowKey(key.epoch, int(self.chosen[key.index])) for key in keys])


class Judge(Protocol):
    """What a kind of task says of its outputs, [rows, K]; see `finetune.evaluation.judge`."""

    best_metric: str
    """The value of `quick` on the validation rows that picks the exported checkpoint; larger is better."""

    def quick(self, split: str, outputs: np.ndarray) -> dict[str, float]: ...
    def judge(self, split: str, outputs: np.ndarray) -> dict[str, Any]: ...
    def gain(self, split: str, outputs: np.ndarray, baseline: np.ndarray) -> dict[str, Any]: ...
    def columns(self, split: str, outputs: np.ndarray) -> dict[str, Any]: ...


@dataclass
class Task:
    """A model, its data and the functions that train and judge it.

    Attributes:
        kind: the `transformers` pipeline that runs the exported model, for example text-classification.
        data: what the loader returned.
        files: where the pretrained weights came from.
        model: the pretrained model, not yet adapted.
        rows: rows by split: train, valid, test.
        collate: rows to a batch of tensors.
        loss_sum: (model, batch) to the sum of the loss over the batch's targets, a scalar.
        count: batch to what that sum is divided by, a scalar; sums over micro-batches and processes.
        outputs: (model, batch) to what is kept of each row, [rows, K]: probabilities for a classifier.
        logits: (model, batch) to what the model computes of each row, [rows, ...]; exported models are compared by it.
        judge: turns outputs into metrics, gains and prediction columns.
        save: (plain model, folder) writes everything that plain `transformers` needs.
        load: folder to model in fp32, the way somebody without this toolkit loads it.
        baselines: what needs no fine-tuning, on the test rows; every process calls it, the main one gets them. What it
            is given beside the accelerator is `predict_rows`, or reads from the cache what that would give.
        samples: a language model to what it writes after fixed prompts: [{"prompt", "text"}], and after held-out ones
            also {"expected", "ended"}.
        fit_head: (model, accelerator) fits what gradients don't train, in closed form and the same on every process;
            called before each evaluation, and once more when training is over.
        head_modules: names of modules that are new, and trained by every adapter.
        fixed_modules: names of modules that no adapter trains or goes into.
        target_modules: what adapters go into unless adapter.targets says otherwise, as it would say it.
        notes: facts to say aloud: rows truncated, head initialised.
    """

    kind: str
    data: LoadedData
    files: ModelFiles
    model: torch.nn.Module
    rows: Mapping[str, Rows]
    collate: Collate
    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor]
    count: Callable[[Batch], torch.Tensor]
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor]
    logits: Callable[[torch.nn.Module, Batch], torch.Tensor]
    judge: Judge
    save: Callable[[torch.nn.Module, Path], None]
    load: Callable[[Path], torch.nn.Module]
    baselines: Callable[[Accelerator, Predict], list[Baseline]] | None = None
    samples: Callable[[torch.nn.Module], list[dict[str, Any]]] | None = None
    fit_head: Callable[[torch.nn.Module, Accelerator], None] = lambda model, accelerator: None
    head_modules: Sequence[str] = ()
    fixed_modules: Sequence[str] = ()
    target_modules: Sequence[str] = ("all-linear",)
    notes: Sequence[str] = field(default_factory=list)
