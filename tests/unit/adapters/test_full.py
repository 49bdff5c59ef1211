"""Full and frozen: which parameters are trained, and what stays in evaluation mode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.adapters import ADAPTERS, Adapter, Frozen, Full, adapter_named
from finetune.errors import ConfigError

pytestmark = pytest.mark.unit


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
        self.classifier = torch.nn.Linear(3, 2)


def task(*heads: str) -> Any:
    return SimpleNamespace(head_modules=heads)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_full_trains_everything_even_what_was_frozen_before() -> None:
    model = Toy().requires_grad_(False)
    adapted = Full().wrap(model, task("classifier"), 10)
    assert trained(adapted) == {name for name, _ in model.named_parameters()}
    Full().train_mode(adapted)
    assert all(module.training for module in adapted.modules())
    assert Full().penalty(adapted) is None
    assert Full().plain(adapted) is model


def test_frozen_trains_the_head_only_and_keeps_dropout_and_statistics_still() -> None:
    model = Frozen().wrap(Toy(), task("classifier"), 10)
    assert trained(model) == {"classifier.weight", "classifier.bias"}
    Frozen().train_mode(model)
    assert [name for name, module in model.named_modules() if module.training] == ["classifier"]
    before = model.encoder[1].running_mean.clone()
    model.encoder(torch.ones(4, 3))
    assert torch.equal(model.encoder[1].running_mean, before)


def test_frozen_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head to train") as caught:
        Frozen().check(task(), 10)
    assert "adapter=full" in caught.value.fix


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_is_found_by_its_name(kind: type[Adapter]) -> None:
    found = adapter_named(kind.model_fields["name"].default)
    assert type(found) is kind
    assert found.name


def test_an_unknown_adapter_is_told_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="lorra is not an adapter") as caught:
        adapter_named("lorra")
    assert "frozen" in caught.value.fix
    assert "full" in caught.value.fix
