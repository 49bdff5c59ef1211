"""LoRA's linear layers in fewer passes: PEFT's numbers but for rounding, and PEFT's own path for everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear

from finetune.dropout import fast_dropout
from finetune.low_rank import fast_lora, is_plain

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
ROWS_BTC = (3, 5, 48)


def adapted(dropout: float = 0.0, *, bias: bool = True, train_base: bool = False, **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(48, 96, bias=bias), torch.nn.Tanh(), torch.nn.Linear(96, 32, bias=bias)
    )
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0", "2"], **more)
    model = get_peft_model(layers, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero as it comes, which would hide half of the work
            torch.nn.init.normal_(parameter, std=0.2)
        parameter.requires_grad = parameter.requires_grad or train_base
    return model


def passed(model: torch.nn.Module, wanted: bool, low: bool = True, cheap: bool = True) -> dict[str, torch.Tensor]:
    """Output and gradients of a forward and a backward pass."""
    torch.manual_seed(1)
    x = torch.randn(ROWS_BTC, requires_grad=True)
    torch.manual_seed(2)
    with fast_dropout(CPU, cheap), fast_lora(CPU, wanted):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = model(x)
        out.float().square().sum().backward()
    found = {"out": out.detach().float(), "x": x.grad}
    found |= {name: some.grad for name, some in model.named_parameters() if some.grad is not None}
    model.zero_grad()
    return found


def off(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float((found[name] - some).norm() / some.norm()) for name, some in exact.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_as_near_to_fp32_as_pefts_path(dropout: float, bias: bool) -> None:
    model = adapted(dropout, bias=bias)
    exact, pefts, fast = (passed(model, *some) for some in ((False, False), (False, True), (True, True)))
    assert set(fast) == set(exact)
    assert len(fast) == 2 + 4
    assert any(not torch.equal(fast[name], pefts[name]) for name in fast)  # another path was taken
    errors, theirs = off(fast, exact), off(pefts, exact)
    assert max(errors.values()) < 0.02  # with another mask it would be near 0.5
    assert sum(errors.values()) < 1.2 * sum(theirs.values())
    assert {name: some.dtype for name, some in fast.items()} == {name: some.dtype for name, some in exact.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_in_fp32_it_is_pefts_path_but_for_rounding(dropout: float, bias: bool) -> None:
    model = adapted(dropout, bias=bias)
    pefts, fast = (passed(model, wanted, low=False) for wanted in (False, True))
    assert set(fast) == set(pefts)
    assert any(not torch.equal(fast[name], pefts[name]) for name in fast)  # another path was taken
    assert max(off(fast, pefts).values()) < 1e-6
    assert {name: some.dtype for name, some in fast.items()} == {name: some.dtype for name, some in pefts.items()}


def test_weights_of_another_precision_are_pefts_to_cast() -> None:
    model = adapted()
    for layer in (some for some in model.modules() if isinstance(some, Linear)):
        layer.base_layer.to(torch.float64)
    x, own = torch.randn(ROWS_BTC, dtype=torch.float64), model(torch.ones(ROWS_BTC, dtype=torch.float64))
    with fast_lora(CPU, True):
        assert torch.equal(model(torch.ones_like(x)), own)


@pytest.mark.parametrize(
    ("more", "low", "cheap"),
    [
        ({"use_dora": True}, True, True),
        ({"lora_bias": True}, True, True),
        ({"train_base": True}, True, True),
        ({"dropout": 0.1}, True, False),  # whoever wants torch's masks gets them
        ({"dropout": 0.1}, False, False),
        ({"use_dora": True}, False, True),
    ],
    ids=["DoRA", "biases", "trained base", "torch's dropout", "torch's dropout in fp32", "DoRA in fp32"],
)
def test_everything_else_is_pefts_to_the_bit(more: dict[str, Any], low: bool, cheap: bool) -> None:
    model = adapted(**more)
    pefts, fast = (passed(model, wanted, low, cheap) for wanted in (False, True))
    for name, some in pefts.items():
        assert torch.equal(fast[name], some), name


def test_plain_is_one_adapter_that_is_not_merged() -> None:
    model = adapted()
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    assert [is_plain(layer) for layer in layers] == [True, True]
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    assert all(is_plain(layer) for layer in layers)  # added, but not active
    model.base_model.set_adapter(["default", "second"])
    assert not is_plain(layers[0])
    model.base_model.set_adapter("default")
    model.merge_adapter()
    assert not any(is_plain(layer) for layer in layers)


def test_without_gradients_and_afterwards_it_is_pefts() -> None:
    model, own = adapted(), Linear.forward
    with fast_lora(CPU, True), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert Linear.forward is not own
        inside = model(torch.ones(ROWS_BTC))
    assert Linear.forward is own
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, model(torch.ones(ROWS_BTC)))
    with fast_lora(CPU, False):
        assert Linear.forward is own
    with fast_lora(torch.device("meta"), True):
        assert Linear.forward is own
