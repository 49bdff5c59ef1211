"""An encoder that computes no padding, against the same encoder on the padded batch: MiniLM's own weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

from finetune import padding
from finetune.attention import fast_attention
from finetune.config import TrainSettings
from finetune.data.sources import resolve_model
from finetune.data.tokens import pad_tokens
from finetune.dropout import fast_dropout
from finetune.kernels import Kernels
from finetune.padding import Layout, has_encoder, without_padding
from finetune.recipe import load_recipe

pytestmark = pytest.mark.equivalence
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def minilm() -> Path:
    model = load_recipe("few_shot_cls").recipe.model
    return resolve_model(model.name, model.revision).path


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    ids = np.random.default_rng(0)
    return pad_tokens([{"input_ids": ids.integers(1000, 30000, length)} for length in lengths], 0)


UNLIKE = batch([48, 9, 30, 17, 12, 40])


def passed(model: torch.nn.Module, wanted: bool, some: dict[str, torch.Tensor] = UNLIKE) -> list[torch.Tensor]:
    """Hidden states of real tokens, and the gradients of something that looks at each of them."""
    model.zero_grad()
    with without_padding(model, CPU, wanted):
        hidden_BTD = model(**some).last_hidden_state
        real = some["attention_mask"].bool()
        hidden_BTD[real].float().pow(3).sum().backward()
    return [hidden_BTD[real].detach(), *(part.grad for part in model.parameters() if part.grad is not None)]


def furthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference, of the largest number of each tensor."""
    assert len(found) == len(expected)
    # Biases of keys have gradients of 0 but for rounding.
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b.abs().max() > 1e-4]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("train", [False, True])
def test_hidden_states_and_gradients_are_those_of_the_padded_batch(minilm: Path, train: bool) -> None:
    model = AutoModel.from_pretrained(minilm, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(train)
    expected = passed(model, False)
    found = passed(model, True)
    assert furthest(found, expected) < 1e-5
    assert any(not torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # it was another computation


def test_layers_that_run_again_in_the_backward_pass_see_the_same_texts(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    expected = passed(model, False)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert furthest(passed(model, True), expected) < 1e-5


def test_in_bf16_it_is_as_near_to_fp32_as_the_padded_batch_is(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    exact = passed(model, False)[0]
    with torch.autocast("cpu", torch.bfloat16), fast_dropout(CPU, True), fast_attention(CPU, True):
        plain, found = (passed(model, wanted)[0] for wanted in (False, True))
    assert (found - exact).abs().mean() < 1.1 * (plain - exact).abs().mean()


def test_dropout_drops_the_same_share_of_real_tokens_only(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    with fast_dropout(CPU, True), without_padding(model, CPU, True), torch.no_grad():
        seen: list[torch.Tensor] = []
        hooks = [
            layer.output.dropout.register_forward_hook(lambda *call: seen.append(call[-1]))
            for layer in model.encoder.layer
        ]
        model(**UNLIKE)
    for hook in hooks:
        hook.remove()
    tokens = -(-int(UNLIKE["attention_mask"].sum()) // padding.TOKENS_STEP) * padding.TOKENS_STEP
    assert {tuple(some.shape) for some in seen} == {(1, tokens, 384)}
    dropped = float(torch.stack([(some == 0).float().mean() for some in seen]).mean())
    assert dropped == pytest.approx(0.3, abs=0.01)


def test_a_head_above_it_gets_its_batch_back(minilm: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(minilm).eval()
    with torch.no_grad():
        expected = model(**UNLIKE).logits
        with without_padding(model, CPU, True):
            found = model(**UNLIKE).logits
    real = UNLIKE["attention_mask"].bool()
    assert found.shape == expected.shape
    assert torch.allclose(found[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [[30, 30], [30, 29, 30, 28]])
def test_a_batch_with_next_to_no_padding_stays_as_it_is(minilm: Path, lengths: list[int]) -> None:
    model, some = AutoModel.from_pretrained(minilm).eval(), batch(lengths)
    found, expected = passed(model, True, some), passed(model, False, some)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_batch_after_another_is_computed_by_its_own_layout(minilm: Path) -> None:
    # The second has as many tokens as the first has places: nothing but its own forward pass can tell them apart.
    model = AutoModel.from_pretrained(minilm).eval()
    others = [batch([20, 4, 8]), batch([32]), batch([4, 20, 8])]
    with torch.no_grad():
        expected = [model(**some).last_hidden_state for some in others]
        with without_padding(model, CPU, True):
            found = [model(**some).last_hidden_state for some in others]
    for some, a, b in zip(others, found, expected, strict=True):
        real = some["attention_mask"].bool()
        assert torch.allclose(a[real], b[real], rtol=0, atol=1e-5)


def test_who_asks_for_the_hidden_states_of_all_layers_gets_them_padded(minilm: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(minilm).eval()
    with torch.no_grad():
        expected = model(**UNLIKE, output_hidden_states=True).hidden_states
        with without_padding(model, CPU, True):
            found = model(**UNLIKE, output_hidden_states=True).hidden_states
            model.config.output_hidden_states = True
            again = model(**UNLIKE).hidden_states
    for some in (found, again):
        assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))


def test_places_are_all_real_tokens_and_padding_up_to_a_step() -> None:
    layout = Layout.of(UNLIKE["attention_mask"].bool())
    real = int(UNLIKE["attention_mask"].sum())
    assert len(layout.places_N) % padding.TOKENS_STEP == 0
    assert len(layout.places_N) == len(set(layout.places_N.tolist()))
    assert UNLIKE["attention_mask"].flatten()[layout.places_N].tolist()[:real] == [1] * real
    assert len(Layout.of(torch.ones(2, 5, dtype=torch.bool)).places_N) == 10  # no more than there are
    x_BTD = torch.randn(6, 48, 3)
    kept = torch.zeros(6 * 48, 1).index_fill_(0, layout.places_N, 1.0).view(6, 48, 1)
    assert torch.equal(layout.padded(layout.packed(x_BTD)), x_BTD * kept)


def test_it_is_for_encoders_with_torchs_attention_on_cpus() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    assert has_encoder(BertModel(BertConfig(**small)))
    assert not has_encoder(BertModel(BertConfig(**small, attn_implementation="eager")))
    assert not has_encoder(BertModel(BertConfig(**small, is_decoder=True)))
    assert not has_encoder(torch.nn.Linear(2, 2))
    model = BertModel(BertConfig(**small))
    own = F.scaled_dot_product_attention
    for device, wanted in ((CPU, False), (torch.device("meta"), True)):
        with without_padding(model, device, wanted):
            assert F.scaled_dot_product_attention is own
            assert "forward" not in vars(model.encoder)
    seen = []

    def fails() -> None:
        with without_padding(model, CPU, True):
            seen.append("forward" in vars(model.encoder))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen == [True]
    assert F.scaled_dot_product_attention is own
    assert "forward" not in vars(model.encoder)


def test_a_run_uses_it_where_rows_are_not_put_together_by_length() -> None:
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    for settings, used in (
        (TrainSettings(length_buckets=False), True),
        (TrainSettings(length_buckets=False, skip_padding=False), False),
        (TrainSettings(), False),
    ):
        kernels = Kernels(CPU, settings)
        assert ("train.skip_padding" in kernels.in_use(model, False, False)) == used
        with kernels.used(model) if used else nullcontext():
            assert ("forward" in vars(model.encoder)) == used
        with kernels.used(model):
            assert ("forward" in vars(model.encoder)) == used
