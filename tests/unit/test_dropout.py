"""Cheap dropout: the right share, unbiased, keyed by torch's generator, and attention as torch computes it."""

import pytest
import torch
from torch.nn import functional as F

from finetune.dropout import fast_dropout, softmax

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(dtype: torch.dtype, p: float) -> None:
    x = torch.ones(1_001, 999, dtype=dtype)
    torch.manual_seed(0)
    with fast_dropout(CPU, True):
        y = F.dropout(x, p)
    kept = (y != 0).double().mean().item()
    # Five standard deviations of a binomial share, and the threshold's own rounding.
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    assert y[y != 0].unique().tolist() == [torch.tensor(1 / (1 - p), dtype=dtype).item()]


def test_masks_are_torchs_generators_and_differ_from_call_to_call() -> None:
    layer, x = torch.nn.Dropout(0.3), torch.randn(50, 40)
    with fast_dropout(CPU, True):
        torch.manual_seed(7)
        first, second = layer(x), layer(x)
        torch.manual_seed(7)
        again = layer(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_goes_where_the_value_went(dtype: torch.dtype) -> None:
    x = torch.randn(64, 33, 5, dtype=dtype).transpose(0, 2).requires_grad_()
    with fast_dropout(CPU, True):
        y = F.dropout(x, 0.25)
        y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)
    assert torch.equal(y.detach(), x.detach() * x.grad) or dtype != torch.float32


def test_a_mask_to_multiply_with_gives_the_bits_of_one_of_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (0, 1 << 20):
        monkeypatch.setattr("finetune.dropout.MOST_FACTORS", most)
        torch.manual_seed(3)
        x = torch.randn(40, 30, requires_grad=True)
        with fast_dropout(CPU, True):
            y = F.dropout(x, 0.3)
            y.square().sum().backward()
        found.append((y.detach(), x.grad))
    for some, other in zip(*found, strict=True):
        assert torch.equal(some, other)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_that_drops_nothing_is_torchs(kind: str, autocast: bool) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(2, 3, 17, 8, requires_grad=True) for _ in range(3)]
    allowed = torch.rand(2, 1, 17, 17) > 0.3
    allowed[..., 0] = True
    mask = {
        "none": None,
        "causal": None,
        "bool": allowed,
        "float": torch.zeros(2, 1, 17, 17).masked_fill(~allowed, -1e4),
    }[kind]

    def run(dropout: float) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout, is_causal=kind == "causal")
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    plain = run(0.0)
    with fast_dropout(CPU, True):
        ours = run(1e-9)  # below the threshold's step: every element stays
    for one, other in zip(plain, ours, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.05 if autocast else 1e-5, atol=0.05 if autocast else 1e-5)


def test_attention_drops_probabilities_without_bias() -> None:
    query, key = torch.randn(4, 9, 8), torch.randn(4, 9, 8)
    value = torch.ones(4, 9, 8)
    with fast_dropout(CPU, True):
        torch.manual_seed(0)
        outs = torch.stack([F.scaled_dot_product_attention(query, key, value, dropout_p=0.2) for _ in range(500)])
    assert outs.std() > 0.05
    assert abs(outs.mean() - 1) < 0.02


def test_a_row_that_may_look_at_nothing_is_a_number() -> None:
    qkv = [torch.randn(1, 1, 4, 8) for _ in range(3)]
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2, :] = False
    with fast_dropout(CPU, True):
        assert F.scaled_dot_product_attention(*qkv, attn_mask=mask, dropout_p=0.1).isfinite().all()


def test_off_is_torchs_own() -> None:
    x = torch.randn(10, 10)
    torch.manual_seed(3)
    plain = F.dropout(x, 0.4)
    torch.manual_seed(3)
    with fast_dropout(CPU, False):
        assert torch.equal(F.dropout(x, 0.4), plain)
    torch.manual_seed(3)
    with fast_dropout(torch.device("meta"), True):
        assert torch.equal(F.dropout(x, 0.4), plain)


def test_it_is_over_when_it_is_over() -> None:
    before = F.dropout, F.scaled_dot_product_attention

    def fail() -> None:
        with fast_dropout(CPU, True):
            assert before[0] is not F.dropout
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (F.dropout, F.scaled_dot_product_attention) == before


@pytest.mark.parametrize("length", [1, 16, 28, 31, 32, 40, 63, 64, 100])
def test_softmax_of_short_rows_is_rounded_once(length: int) -> None:
    scores = (torch.randn(4, 3, 7, length) * 3).bfloat16().requires_grad_()
    grad = torch.randn(4, 3, 7, length).bfloat16()
    shares = softmax(scores)
    shares.backward(grad)
    exact = scores.detach().double().requires_grad_()
    shares_exact = exact.softmax(-1)
    assert shares.dtype == scores.grad.dtype == torch.bfloat16
    assert torch.allclose(shares.double(), shares_exact, rtol=2**-8, atol=0)  # half of a last place, and fp32's error
    # Its gradient is that of the rounded shares.
    rounded = shares.detach().double()
    expected = rounded * (grad.double() - (rounded * grad.double()).sum(-1, keepdim=True))
    assert torch.allclose(scores.grad.double(), expected, rtol=2**-7, atol=1e-5)
