"""Attention of plain products: torch's own values and gradients, and torch's kernel wherever it is not meant."""

import pytest
import torch
from torch.nn import functional as F

from finetune.attention import BLOCK, LONGEST_WITHOUT_GRADIENTS, fast_attention

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def tensors(heads: int, groups: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    sizes = [(2, number, length, 16) for number in (heads, groups, groups)]
    return [torch.randn(size).to(dtype).requires_grad_() for size in sizes]


def attend(inputs: list[torch.Tensor], wanted: bool, **more: object) -> list[torch.Tensor]:
    """Output and gradients."""
    with fast_attention(CPU, wanted):
        found = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True, **more)  # type: ignore[arg-type]
    return [found.detach(), *torch.autograd.grad(found.float().square().sum(), inputs)]


@pytest.mark.parametrize("length", [1, 7, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("groups", [6, 2])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_values_and_gradients_are_those_of_exact_attention(length: int, groups: int, scale: float | None) -> None:
    inputs = tensors(6, groups, length, torch.bfloat16)
    exact = attend([tensor.detach().double().requires_grad_() for tensor in inputs], False, scale=scale)
    torchs, ours = attend(inputs, False, scale=scale), attend(inputs, True, scale=scale)
    for mine, theirs, true in zip(ours, torchs, exact, strict=True):
        error, their_error = (
            (some.double() - true).abs().max() / true.abs().max().clamp(min=1) for some in (mine, theirs)
        )
        assert error < 4 * their_error + 2**-8  # bf16 itself is exact to 2**-9


def test_no_token_sees_a_later_one() -> None:
    inputs = tensors(2, 2, BLOCK + 40, torch.bfloat16)
    changed = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        for tensor in changed:
            tensor[:, :, BLOCK + 10 :] += 5
    before, after = attend(inputs, True)[0], attend(changed, True)[0]
    assert torch.equal(before[:, :, : BLOCK + 10], after[:, :, : BLOCK + 10])
    assert not torch.equal(before[:, :, BLOCK + 10 :], after[:, :, BLOCK + 10 :])


def test_autocast_makes_it_of_fp32_too() -> None:
    inputs = tensors(4, 2, 20, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = attend(inputs, True), attend(inputs, False)
    assert ours[0].dtype == torchs[0].dtype == torch.bfloat16
    assert not torch.equal(ours[0], torchs[0])
    assert torch.allclose(ours[0].float(), torchs[0].float(), atol=2e-2)
    assert [some.dtype for some in ours[1:]] == [torch.float32] * 3


@pytest.mark.parametrize("length", [1, 28, 32, LONGEST_WITHOUT_GRADIENTS])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_without_gradients_it_looks_both_ways(length: int, kind: str) -> None:
    inputs = [tensor.detach() for tensor in tensors(6, 6, length, torch.bfloat16)]
    allowed = torch.ones(2, 1, 1, length, dtype=torch.bool)
    allowed[1, ..., length // 2 + 1 :] = False
    mask = {"none": None, "bool": allowed, "float": torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)}[kind]

    def attended(of: list[torch.Tensor], wanted: bool) -> torch.Tensor:
        with torch.inference_mode(), fast_attention(CPU, wanted):
            return F.scaled_dot_product_attention(*of, attn_mask=mask if mask is None else mask.to(mask_dtype(of)))

    def mask_dtype(of: list[torch.Tensor]) -> torch.dtype:
        return torch.bool if kind == "bool" else of[0].dtype

    exact = attended([tensor.double() for tensor in inputs], False)
    ours, torchs = attended(inputs, True), attended(inputs, False)
    assert length == 1 or not torch.equal(ours, torchs)  # else torch's kernel was taken
    error, their_error = ((some.double() - exact).abs().max() for some in (ours, torchs))
    assert error < 4 * their_error + 2**-8


def test_long_rows_without_gradients_stay_torchs() -> None:
    inputs = [tensor.detach() for tensor in tensors(2, 2, LONGEST_WITHOUT_GRADIENTS + 1, torch.bfloat16)]
    expected = F.scaled_dot_product_attention(*inputs)
    with torch.no_grad(), fast_attention(CPU, True):
        assert torch.equal(F.scaled_dot_product_attention(*inputs), expected)


@pytest.mark.parametrize("more", [{"dropout_p": 0.0}, {"attn_mask": torch.ones(20, 20, dtype=torch.bool).tril()}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_kernel_stays_where_it_is_not_meant(more: dict[str, object], dtype: torch.dtype) -> None:
    inputs = tensors(4, 4, 20, dtype)
    own = F.scaled_dot_product_attention

    def call() -> torch.Tensor:
        return F.scaled_dot_product_attention(*inputs, is_causal="attn_mask" not in more, **more)  # type: ignore[arg-type]

    expected = call()
    with fast_attention(CPU, True):
        assert torch.equal(call(), expected) == (dtype == torch.float32 or "attn_mask" in more)
        with torch.no_grad():  # where short rows that are not causal are meant
            assert torch.equal(call(), expected) == (dtype == torch.float32 or "attn_mask" not in more)
    with fast_attention(torch.device("meta"), True):
        assert torch.equal(call(), expected)
    with fast_attention(CPU, False):
        assert torch.equal(call(), expected)
    assert F.scaled_dot_product_attention is own
