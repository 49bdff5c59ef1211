"""Frozen matrices in low precision: cast once, the same bits as autocast's own casts, and never stale."""

import pytest
import torch
from torch.nn import functional as F

from finetune.config import TrainSettings
from finetune.kernels import FrozenCasts, Kernels

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def layers() -> torch.nn.Sequential:
    """A frozen layer between two that are trained."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 48), torch.nn.Linear(48, 8))
    model[1].requires_grad_(False)
    return model


def gradients(model: torch.nn.Module, casts: FrozenCasts | None, dtype: torch.dtype = torch.bfloat16) -> list[object]:
    """Loss and gradients of one backward pass under autocast."""
    model.zero_grad()
    inputs = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    with (casts or FrozenCasts()).used(CPU, casts is not None), torch.autocast("cpu", dtype=dtype):
        loss = model(inputs).float().square().sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def test_the_bits_are_those_of_autocast_and_a_cast_is_kept() -> None:
    model, casts = layers(), FrozenCasts()
    expected = gradients(model, None)
    for _ in range(2):
        assert all(torch.equal(own, other) for own, other in zip(gradients(model, casts), expected, strict=True))
    (kept,) = casts._casts.values()
    assert kept[0] is model[1].weight
    assert kept[2].dtype == torch.bfloat16


def test_changed_and_unfrozen_weights_are_cast_anew() -> None:
    model, casts = layers(), FrozenCasts()
    gradients(model, casts)
    with torch.no_grad():
        model[1].weight.mul_(2)
    found, expected = gradients(model, casts), gradients(model, None)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))
    model[1].requires_grad_(True)
    assert gradients(model, casts)[3] is not None  # the gradient of a matrix that was frozen before


def test_other_precisions_and_places_are_left_alone() -> None:
    model, casts, own = layers(), FrozenCasts(), F.linear
    with casts.used(CPU, True):
        model(torch.randn(2, 24))  # no autocast
    with casts.used(CPU, False), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 24))
    with casts.used(torch.device("meta"), True):
        assert F.linear is own
    assert not casts._casts
    assert F.linear is own


def test_a_plan_names_what_a_model_makes_use_of() -> None:
    model, kernels = layers(), Kernels(CPU, TrainSettings(reuse_memory=False))
    assert kernels.in_use(model, low_precision=True, causal=False) == ["train.cast_frozen_once"]
    assert kernels.in_use(model, low_precision=False, causal=True) == []
    model.append(torch.nn.Dropout(0.1))
    assert kernels.in_use(model.requires_grad_(True), low_precision=True, causal=True) == [
        "train.fast_dropout", "train.fast_attention"
    ]  # fmt: skip
    assert Kernels(torch.device("meta"), TrainSettings()).in_use(model, True, True) == []
