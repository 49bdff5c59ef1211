"""Every row is predicted once, in its own place, whatever the batches and the processes are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batching import RowKey
from finetune.data.tokens import TokenRows, pad_tokens
from finetune.evaluation import predict
from finetune.evaluation.predict import MAX_ROWS, mean_pooled, most_rows, planned_batches, predict_rows

pytestmark = pytest.mark.unit


class Rank:
    """One process of several, run one after the other: what it would send is kept, what others sent is added."""

    is_main_process, device = False, torch.device("cpu")

    def __init__(self, process_index: int, num_processes: int, sent: list[list[torch.Tensor]]) -> None:
        self.process_index, self.num_processes, self.sent = process_index, num_processes, sent
        self.sent.append([])

    def pad_across_processes(self, tensor: torch.Tensor, pad_index: int = 0) -> torch.Tensor:
        # As many rows as any process can have here; accelerate pads to the longest of all.
        return torch.cat([tensor, torch.full((99 - len(tensor), *tensor.shape[1:]), pad_index, dtype=tensor.dtype)])

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        # Whether any process had no memory: none here, and the others have not run yet.
        assert (reduction, int(tensor)) == ("sum", 0)
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sent[-1].append(tensor)
        number = len(self.sent[-1]) - 1
        return torch.cat([other[number] for other in self.sent])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 40))
def test_rows_come_back_in_order_from_any_number_of_processes(lengths: list[int], world: int, tokens: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = TokenRows(
        {"input_ids": np.repeat(np.arange(1, len(lengths) + 1), lengths)}, offsets, np.zeros(len(lengths), bool)
    )
    model = torch.nn.Linear(1, 1).train()

    def outputs(_: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return torch.stack([batch["input_ids"].amax(1), batch["attention_mask"].sum(1)], dim=1)

    sent: list[list[torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(predict, "CPU_TOKENS", tokens)
        for rank in range(world):
            accelerator: Any = Rank(rank, world, sent)
            found = predict_rows(model, rows, lambda some: pad_tokens(some, 0), outputs, accelerator, "x")
    assert found.dtype == np.float32
    assert found.tolist() == [[index + 1, length] for index, length in enumerate(lengths)]
    assert not model.training


def test_the_mean_is_over_real_tokens_only() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]], dtype=torch.bfloat16)
    pooled = mean_pooled(hidden, torch.tensor([[1, 1, 0]]))
    assert pooled.tolist() == [[2.0, 3.0]]
    assert pooled.dtype == torch.float32


class Pictures:
    """Rows without lengths, each of so many numbers."""

    lengths = None

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 90

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [{"pixels": torch.zeros(self.shape)} for _ in keys]


def test_large_images_come_in_small_batches_on_a_cpu_alone() -> None:
    def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixels"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.zeros(len(rows), dtype=torch.int64)}

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert most_rows(Pictures(3, 224, 224), stacked, cpu) == 16
    assert most_rows(Pictures(3, 2000, 2000), stacked, cpu) == 1
    assert most_rows(Pictures(512), stacked, cpu) == most_rows(Pictures(3, 224, 224), stacked, gpu) == MAX_ROWS

    shapes = []

    def outputs(_: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append(len(batch["pixel_values"]))
        return batch["pixel_values"].flatten(1)[:, :1]

    accelerator: Any = Rank(0, 1, [])
    predict_rows(torch.nn.Linear(1, 1), Pictures(3, 224, 224), stacked, outputs, accelerator, "x")
    assert max(shapes) == 16
    assert sum(shapes) == 90


def test_a_cpus_batches_of_tokens_are_small_ones() -> None:
    offsets = np.arange(0, 9 * 256 + 1, 256)
    rows = TokenRows({"input_ids": np.ones(9 * 256, np.int64)}, offsets, np.zeros(9, bool))

    def sizes(device: str, divisor: int = 1) -> list[int]:
        return [len(some) for some in planned_batches(rows, lambda _: {}, torch.device(device), divisor)]

    assert sizes("cpu") == [4, 4, 1]
    assert sizes("cpu", 2) == [2, 2, 2, 2, 1]
    assert sizes("cuda") == [9]
