"""Every row's outputs from a model, computed once each, over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from finetune.data.batching import RowKey, evaluation_batches
from finetune.errors import TrainingError
from finetune.launch import say
from finetune.memory import Shortage
from finetune.progress import passing_bar

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.task import Batch, Collate, Rows

MAX_ROWS, MAX_TOKENS = 128, 8192
# Tokens of a CPU's batch, which is no slower for being small: bert_cls's 840 validation rows took 3.50 s in place of
# 3.57 (fp32, medians of three in turn), a decoder's rows of 1,024 tokens as long, and the peak was 280 MiB lower.
CPU_TOKENS = 1024
# Numbers of a CPU's batch where rows are of one size: 16 images of 224 x 224. A ResNet-18's first pass over 96 images
# took 1.14 s in place of 1.83 in one batch (bf16, channels_last; as long in plain fp32), and 0.4 GiB less memory.
MAX_INPUTS = 16 * 3 * 224 * 224


class Predict(Protocol):
    """`predict_rows`, or what gives the same: `finetune.evaluation.kept.KeptOutputs`."""

    def __call__(
        self,
        model: torch.nn.Module,
        rows: Rows,
        collate: Collate,
        outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
        accelerator: Accelerator,
        title: str,
    ) -> np.ndarray: ...


def predict_rows(
    model: torch.nn.Module,
    rows: Rows,
    collate: Collate,
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
    title: str,
) -> np.ndarray:
    """Outputs of all rows, [rows, K] fp32 in row order, the same on every process.

    Per-row outputs are gathered and metrics computed from them, because a mean of the processes' own metrics is
    wrong whenever their rows are not equally many. Leaves the model in evaluation mode. Without memory for a batch,
    all begin again with batches of half the size, and say so.

    Raises:
        TrainingError: there is no memory for a single row.
    """
    return predict_all(model, rows, collate, outputs, accelerator, title)[0]


def predict_all(
    model: torch.nn.Module,
    rows: Rows,
    collate: Collate,
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
    title: str,
) -> tuple[np.ndarray, bool]:
    """As `predict_rows`, and whether there was memory for batches of the planned size."""
    divisor = 1
    while True:
        batches = planned_batches(rows, collate, accelerator.device, divisor)
        found = _predict_batches(model, batches, rows, collate, outputs, accelerator, title)
        if found is not None:
            return found, divisor == 1
        if max(map(len, batches)) == 1:
            raise TrainingError(
                f"{title}: not even one row at a time fits into memory.", "Take shorter rows or a smaller model."
            )
        divisor *= 2
        say(accelerator, f"{title}: no memory was left for {len(batches[0])} rows at a time; now with at most half.")


def planned_batches(rows: Rows, collate: Collate, device: torch.device, divisor: int = 1) -> list[np.ndarray]:
    """Every row's index once, in batches that are the same for any number of processes and smaller on a CPU.

    Args:
        divisor: of their size, for want of memory.
    """
    tokens = CPU_TOKENS if device.type == "cpu" else MAX_TOKENS
    most = most_rows(rows, collate, device)
    return evaluation_batches(rows.lengths, len(rows), max(1, most // divisor), tokens // divisor)


def most_rows(rows: Rows, collate: Collate, device: torch.device) -> int:
    """Rows of an evaluation batch, at most: fewer where they are large on a CPU, whose caches they would leave."""
    if rows.lengths is not None or device.type != "cpu":
        return MAX_ROWS
    row = collate(rows.__getitems__([RowKey(0, 0)]))
    numbers = sum(tensor.numel() for tensor in row.values() if tensor.is_floating_point())
    return max(1, min(MAX_ROWS, MAX_INPUTS // max(1, numbers)))


def _predict_batches(
    model: torch.nn.Module,
    batches: Sequence[np.ndarray],
    rows: Rows,
    collate: Collate,
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
    title: str,
) -> np.ndarray | None:
    """Outputs, [rows, K], the same on every process; None on every process when one had no memory for a batch."""
    rank, world, short = accelerator.process_index, accelerator.num_processes, Shortage(model)
    mine = list(batches[rank::world])
    own = len(mine)
    # A process that is out of batches repeats a row and marks it -1: a wrapped model may need every process.
    mine += [batches[0][:1]] * (math.ceil(len(batches) / world) - own)
    model.eval()
    parts, indices = [], []
    with torch.inference_mode(), passing_bar(accelerator, title, len(mine), "batch") as bar:
        for number, index in enumerate(mine):
            # After a shortage only to take part, as often as the others do.
            held = index[:1] if short.met else index
            batch = to_device(collate(rows.__getitems__([RowKey(0, int(row)) for row in held])), accelerator.device)
            with short.noted():
                parts.append(outputs(model, batch).float())
            if short.met:
                short.make_room()
            indices.append(torch.as_tensor(index if number < own else np.full_like(index, -1)))
            bar.update()
        if int(accelerator.reduce(torch.tensor([int(short.met)], device=accelerator.device), reduction="sum")):
            return None
        output_RK, index_R = torch.cat(parts), torch.cat(indices).to(accelerator.device)
        output_RK = accelerator.gather(accelerator.pad_across_processes(output_RK))
        index_R = accelerator.gather(accelerator.pad_across_processes(index_R, pad_index=-1))
    found = index_R.cpu().numpy()
    result = np.full((len(rows), output_RK.shape[1]), np.nan, dtype=np.float32)
    result[found[found >= 0]] = output_RK.cpu().numpy()[found >= 0]
    return result


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch's tensors on a device; overlaps with computing when they are pinned."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def mean_pooled(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean of the hidden states over a row's real tokens, [rows, width] fp32 (Sentence-BERT, arXiv:1908.10084)."""
    mask_BT1 = mask_BT.unsqueeze(-1).float()
    return (hidden_BTD.float() * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)
