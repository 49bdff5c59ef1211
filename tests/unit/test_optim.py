"""The optimizer's groups and the learning rate by hand; the schedules equal transformers' in the equivalence tier."""

from __future__ import annotations

import pytest
import torch

from finetune.config import TrainSettings
from finetune.optim import build_optimizer, lr_factor, set_lr, warmup_updates

pytestmark = pytest.mark.unit


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    )


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed_and_frozen_weights_are_left_out(kind: str) -> None:
    net = model()
    net[3].requires_grad_(False)
    optimizer = build_optimizer(net, TrainSettings(optimizer=kind, weight_decay=0.2, lr=0.5))
    decayed, plain = optimizer.param_groups
    assert {id(value) for value in decayed["params"]} == {id(net[0].weight), id(net[2].weight)}
    assert {id(value) for value in plain["params"]} == {id(net[1].weight), id(net[1].bias), id(net[2].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
    if kind == "sgd":
        assert decayed["momentum"] == 0.9
    else:
        assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-8)


def test_a_head_of_biases_alone_makes_one_group() -> None:
    net = model().requires_grad_(False)
    net[2].bias.requires_grad_(True)
    assert len(build_optimizer(net, TrainSettings()).param_groups) == 1


def test_warm_up_is_what_was_set_or_six_percent_rounded_up() -> None:
    assert warmup_updates(TrainSettings(lr_warmup_updates=0), 100) == 0
    assert warmup_updates(TrainSettings(lr_warmup_updates=7), 3) == 7
    assert [warmup_updates(TrainSettings(), total) for total in (1, 16, 17, 100, 101)] == [1, 1, 2, 6, 7]


def test_factors_by_hand() -> None:
    assert [lr_factor(update, 6, 2, "linear") for update in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert [lr_factor(update, 6, 2, "constant") for update in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert lr_factor(4, 6, 2, "cosine") == pytest.approx(0.5)
    assert lr_factor(9, 6, 2, "linear") == 0.0
    # Warm-up longer than the plan: it never gets to the peak, and nothing is divided by zero.
    assert [lr_factor(update, 2, 5, "linear") for update in range(2)] == [0.0, 0.2]


def test_the_factor_is_of_each_groups_own_peak() -> None:
    optimizer = build_optimizer(model(), TrainSettings(lr=0.5))
    optimizer.param_groups[0]["peak_lr"] = 1.0
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])
