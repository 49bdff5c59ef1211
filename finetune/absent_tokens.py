"""Rows of the word embedding whose tokens are in no training row: known before training, so they are not trained.

Such a row's gradient is 0 at every update, and all that an optimizer does to it is weight decay: it shrinks by the
same factor as every other such row. So one number is trained in place of them all, and gradients, moments and the
passes over them are of the rows that occur. It serves every model with a word embedding of its own, without touching
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.mapped import forget_pages
from finetune.errors import TrainingError

if TYPE_CHECKING:
    from finetune.trainer import Trainer

# Of all rows: where fewer are absent, next to nothing is gained.
LEAST_ABSENT = 0.1
IDS_AT_ONCE = 1 << 22


@contextmanager
def without_absent_tokens(trainer: Trainer) -> Iterator[None]:
    """A context in which `trainer` trains those rows of the word embedding whose tokens occur, on the CPU.

    Evaluation sees all rows, and so does whoever has the model afterwards: the same but for rounding, by the order of
    sums in the gradients' norm and of products of weight decay. Without clipping, what occurs has the same bits.
    """
    found = _of_use(trainer)
    if found is None:
        yield
        return
    embedding, occurs_V = found
    parent, name = _place(trainer.model, embedding)
    setattr(parent, name, rows := OccurringRows(embedding, occurs_V))
    try:
        yield
    finally:
        rows.put_back(embedding)
        setattr(parent, name, embedding)


def skips_absent_tokens(trainer: Trainer) -> bool:
    """Whether `without_absent_tokens` will leave rows out."""
    return _of_use(trainer) is not None


class OccurringRows(torch.nn.Module):
    """Stands where a word embedding stood, and trains the rows of some tokens.

    Attributes:
        weight: the rows that are trained, [rows, D]; it has the name that the embedding's own weight had.
        decay: what all other rows are multiplied with, [1, 1]: a weight of its own, whose gradient is 0, so that the
            optimizer does to it what it would do to each of them, and checkpoints hold it.
    """

    def __init__(self, embedding: torch.nn.Embedding, occurs_V: np.ndarray) -> None:
        super().__init__()
        occurs_V = occurs_V.copy()
        if embedding.padding_idx is not None:
            occurs_V[embedding.padding_idx] = True  # where texts are padded, it is looked up
        kept = torch.from_numpy(np.flatnonzero(occurs_V))
        self.weight = torch.nn.Parameter(embedding.weight.detach()[kept].clone())
        self.decay = torch.nn.Parameter(torch.ones(1, 1, dtype=self.weight.dtype))
        # No buffers: DDP would send them around at every pass.
        self._kept, self._original_VD = kept, embedding.weight.detach()
        self._places_V = torch.from_numpy(np.where(occurs_V, np.cumsum(occurs_V) - 1, -1))
        self._padding = None if embedding.padding_idx is None else int(self._places_V[embedding.padding_idx])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of token ids, [..., D].

        Raises:
            TrainingError: a token to be trained was not among those that occur.
        """
        places, trains = self._places_V[ids], torch.is_grad_enabled()
        absent = places < 0
        if not absent.any():
            found = F.embedding(places, self.weight, self._padding)
            return cast(torch.Tensor, _WithZeroGradient.apply(found, self.decay)) if trains else found
        if trains:
            raise TrainingError(
                f"A training batch has token {int(ids[absent][0])}, which is in no training row.",
                "The recipe's collate adds it: set train.skip_absent_tokens=false.",
            )
        found = F.embedding(places.clamp(min=0), self.weight)
        found[absent] = self._original_VD[ids[absent]] * self.decay
        return found

    @torch.no_grad()
    def put_back(self, embedding: torch.nn.Embedding) -> None:
        """All rows, as they are now, into the embedding that was here."""
        embedding.weight.mul_(self.decay)
        embedding.weight[self._kept] = self.weight


class _WithZeroGradient(torch.autograd.Function):
    """x as it is; the weight beside it gets a gradient of 0, where none at all would keep the optimizer from it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, torch.zeros_like(ctx.saved_tensors[0])


def _of_use(trainer: Trainer) -> tuple[torch.nn.Embedding, np.ndarray] | None:
    """The model's word embedding and which tokens occur, [V] bool; None where nothing can be left out."""
    model, accelerator = trainer.model, trainer.accelerator
    ids = getattr(trainer.task.rows["train"], "token_ids", None)
    sharded = accelerator.distributed_type in ("FSDP", "DEEPSPEED")
    if not trainer.settings.skip_absent_tokens or accelerator.device.type != "cpu" or sharded:
        return None
    if ids is None or not hasattr(model, "get_input_embeddings"):
        return None
    embedding = cast(Any, model).get_input_embeddings()
    if type(embedding) is not torch.nn.Embedding or embedding.max_norm or embedding.scale_grad_by_freq:
        return None
    # A head that is tied to it needs all rows; and an embedding that stays as it is costs nothing.
    names = [name for name, some in model.named_parameters(remove_duplicate=False) if some is embedding.weight]
    if len(names) != 1 or not embedding.weight.requires_grad:
        return None
    occurs_V = np.zeros(embedding.num_embeddings, dtype=bool)
    for first in range(0, len(ids), IDS_AT_ONCE):
        occurs_V[ids[first : first + IDS_AT_ONCE]] = True
        forget_pages(ids)
    return (embedding, occurs_V) if 1 - occurs_V.mean() >= LEAST_ABSENT else None


def _place(model: torch.nn.Module, wanted: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The module that holds a module, and by which name."""
    path = next(path for path, module in model.named_modules() if module is wanted)
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
