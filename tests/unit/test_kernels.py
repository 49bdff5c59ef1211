"""What an update computes with: named by a plan where a model makes use of it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from finetune.config import TrainSettings
from finetune.kernels import Kernels

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def test_a_plan_names_what_a_model_makes_use_of() -> None:
    model, kernels = torch.nn.Sequential(torch.nn.Linear(4, 4)), Kernels(CPU, TrainSettings(reuse_memory=False))
    assert kernels.in_use(model, low_precision=False, causal=True) == []
    assert kernels.in_use(model, low_precision=True, causal=False) == []
    model.append(torch.nn.Dropout(0.1))
    assert kernels.in_use(model, low_precision=True, causal=True) == ["train.fast_dropout", "train.fast_attention"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))
    for low_precision in (False, True):
        named = kernels.in_use(adapted, low_precision, causal=False)
        assert named == ["train.fast_dropout", "train.fast_lora"]
    assert Kernels(torch.device("meta"), TrainSettings()).in_use(model, True, True) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_they_are_in_place_for_as_long_as_an_update_runs(wanted: bool) -> None:
    own = F.dropout, F.scaled_dot_product_attention
    with Kernels(CPU, TrainSettings(fast_dropout=wanted, fast_attention=wanted)).used(torch.nn.Linear(1, 1)):
        assert (F.dropout is own[0], F.scaled_dot_product_attention is own[1]) == (not wanted, not wanted)
    assert (F.dropout, F.scaled_dot_product_attention) == own
