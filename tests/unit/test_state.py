"""Which weights count as finite."""

from __future__ import annotations

import math

import pytest
import torch

from finetune.state import not_finite

pytestmark = pytest.mark.unit


def with_weights(dtype: torch.dtype, *values: float) -> torch.nn.Module:
    model = torch.nn.ParameterDict({"fine": torch.nn.Parameter(torch.ones(3, dtype=dtype))})
    entries = torch.zeros(1000, dtype=dtype)
    entries[: len(values)] = torch.tensor(values, dtype=dtype)
    model["weight"] = torch.nn.Parameter(entries)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "values",
    [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (0.0, 1.0, math.nan)],
    ids=str,
)
def test_one_entry_is_enough(dtype: torch.dtype, values: tuple[float, ...]) -> None:
    assert not_finite(with_weights(dtype, *values)) == "weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    model = with_weights(dtype, *[largest] * 999)
    assert not model["weight"].sum().isfinite()
    assert not_finite(model) is None
    assert not_finite(torch.nn.ParameterDict({"none": torch.nn.Parameter(torch.ones(0, dtype=dtype))})) is None


def test_numbers_that_are_no_floats_are_passed_over() -> None:
    model = torch.nn.ParameterDict({"bytes": torch.nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)})
    assert not_finite(model) is None
