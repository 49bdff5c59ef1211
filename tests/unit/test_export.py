"""What is said of a saved model: the largest difference, the predictions that change, and the failure above both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from finetune.errors import TrainingError
from finetune.export import difference, export_lines, refuse_unequal

pytestmark = pytest.mark.unit


def test_a_difference_is_relative_to_the_largest_logit_and_flips_are_rows() -> None:
    live = torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, -8.0]])
    loaded = live.clone()
    loaded[1] = torch.tensor([3.0, 3.5])
    part = difference(live, loaded, 0.5)
    assert (part["difference"], part["flips"], part["tolerance"]) == (1 / 8, 1, 0.5)
    assert difference(live, live, 0.0)["difference"] == difference(live, live, 0.0)["flips"] == 0


def test_a_row_of_tokens_flips_once() -> None:
    live = torch.zeros(3, 5, 4)
    live[..., 0] = 1.0
    loaded = live.clone()
    loaded[1, 0, 2] = loaded[1, 3, 2] = loaded[2, 4, 1] = 3.0
    assert difference(live, loaded, 0.0)["flips"] == 2
    assert difference(live, loaded, 0.0)["difference"] == 3.0


def test_what_is_printed_and_what_fails() -> None:
    def check(found: float) -> dict[str, Any]:
        part = {"difference": found, "measure": "relative to the largest", "tolerance": 1e-5, "flips": 2}
        return {"rows": 32, "parts": {"model": part}}

    (line,) = export_lines(check(3e-6))
    assert line.startswith("model/ loaded back: logits differ by at most 3.0e-06 (relative to the largest;")
    assert line.endswith("2 of 32 predictions change")
    refuse_unequal(check(1e-5))
    for wrong in (1.1e-5, math.inf, math.nan):
        with pytest.raises(TrainingError, match="What was saved in model/ is not what was trained"):
            refuse_unequal(check(wrong))
