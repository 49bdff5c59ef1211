"""A classifier whose last layer computes one token, against the same classifier as it is: MiniLM's own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, BertForSequenceClassification

from finetune.attention import fast_attention
from finetune.config import TrainSettings
from finetune.data.sources import resolve_model
from finetune.data.tokens import pad_tokens
from finetune.dropout import fast_dropout
from finetune.first_token import first_token_only, last_layer
from finetune.hardware import choose_precision
from finetune.kernels import Kernels
from finetune.low_rank import fast_lora
from finetune.recipe import load_recipe
from finetune.sentence_classification import load_sentence_classifier

pytestmark = [
    pytest.mark.equivalence,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks for it
]
CPU = torch.device("cpu")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def minilm() -> Path:
    model = load_recipe("bert_cls").recipe.model
    return resolve_model(model.name, model.revision).path


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    ids = np.random.default_rng(0)
    return pad_tokens([{"input_ids": ids.integers(1000, 30000, length)} for length in lengths], 0)


def classifier(minilm: Path, **config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3, **config).train()


def passed(model: Any, wanted: bool, some: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, and the gradients of a loss of them."""
    model.zero_grad()
    with first_token_only(model, CPU, wanted):
        logits_BC = model(**some).logits
        torch.nn.functional.cross_entropy(logits_BC.float(), torch.arange(len(logits_BC)) % 3).backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return {"logits": logits_BC.detach(), **gradients}


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference, of the largest number of each tensor."""
    assert found.keys() == expected.keys()
    # Biases of keys have gradients of 0 but for rounding.
    pairs = [(found[name], some) for name, some in expected.items() if some.abs().max() > 1e-6]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("lengths", [[48, 9, 30, 17], [20, 20, 20], [7]])
def test_logits_and_gradients_are_those_of_the_whole_layer(minilm: Path, lengths: list[int]) -> None:
    model, some = classifier(minilm, **NO_DROPOUT), batch(lengths)
    expected, found = passed(model, False, some), passed(model, True, some)
    assert furthest(found, expected) < 2e-5
    assert len(found) == 1 + len(list(model.parameters()))


def test_so_they_are_with_lora_and_with_layers_that_run_again(minilm: Path) -> None:
    model, some = classifier(minilm, **NO_DROPOUT), batch([48, 9, 30, 17])
    targets = ["query", "key", "value", "dense"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    expected = passed(adapted, False, some)
    assert furthest(passed(adapted, True, some), expected) < 2e-5
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    assert furthest(passed(adapted, True, some), expected) < 2e-5


@pytest.mark.parametrize("adapt", [lambda model: model, lambda model: get_peft_model(
    model, LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
)])  # fmt: skip
def test_in_bf16_it_is_as_near_to_fp32_as_the_whole_layer_is(minilm: Path, adapt: Callable[[Any], Any]) -> None:
    # Without instructions for bf16 its products take a hundred times as long.
    full_rows = 30 if choose_precision("auto") == "bf16" else 6
    model, some = adapt(classifier(minilm, **NO_DROPOUT)), batch([28] * full_rows + [20, 9])
    exact = passed(model, False, some)
    with (
        torch.autocast("cpu", torch.bfloat16),
        fast_dropout(CPU, True),
        fast_attention(CPU, True),
        fast_lora(CPU, True),
    ):
        plain, found = (passed(model, wanted, some) for wanted in (False, True))
    off = [
        {name: float((one[name].float() - exact[name]).norm()) for name in exact if exact[name].norm() > 1e-5}
        for one in (plain, found)
    ]
    assert sum(off[1].values()) < 1.1 * sum(off[0].values())


def test_the_layers_products_are_of_one_token_a_row_and_its_dropout_too(minilm: Path) -> None:
    model, some = classifier(minilm, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), batch([40] * 32)
    layer, seen = model.bert.encoder.layer[-1], {}
    for name, part in layer.named_modules():
        part.register_forward_hook(lambda *call, name=name: seen.__setitem__(name, call[-1]))
    with fast_dropout(CPU, True), first_token_only(model, CPU, True):
        model(**some)
    rows = {name: tuple(found.shape[:2]) for name, found in seen.items() if isinstance(found, torch.Tensor)}
    assert rows.pop("attention.self.key") == rows.pop("attention.self.value") == (32, 40)
    assert rows.pop("") == (32, 40)
    assert seen[""][:, 0].isfinite().all()
    assert seen[""][:, 1:].isnan().all()
    assert {"attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"} <= rows.keys()
    assert set(rows.values()) == {(32, 1)}
    assert float((seen["output.dropout"] == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_who_reads_more_than_the_first_token_gets_the_whole_layer_or_nan_and_never_something_else(minilm: Path) -> None:
    # As a copied recipe may do it that pools over tokens.
    model, some = classifier(minilm, **NO_DROPOUT), batch([20, 9])
    expected = model(**some, output_hidden_states=True).hidden_states[-1]
    seen: list[torch.Tensor] = []
    model.bert.encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    with first_token_only(model, CPU, True):
        assert torch.equal(model(**some, output_hidden_states=True).hidden_states[-1], expected)
        assert torch.equal(model.bert(**some).last_hidden_state, expected)
        seen.clear()
        model(**some)
        assert seen[0].mean().isnan()
        model.config.output_hidden_states = True
        assert torch.equal(model(**some).hidden_states[-1], expected)


def test_it_is_for_trained_classifiers_whose_head_reads_one_token() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL))
    assert last_layer(model) is model.bert.encoder.layer[-1]
    assert last_layer(get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))) is not None
    for other in (
        BertForMaskedLM(BertConfig(**SMALL)),
        BertForSequenceClassification(BertConfig(**SMALL, attn_implementation="eager")),
        BertForSequenceClassification(BertConfig(**SMALL, is_decoder=True)),
        torch.nn.Linear(2, 2),
        BertForSequenceClassification(BertConfig(**SMALL)).requires_grad_(False),
    ):
        assert last_layer(other) is None
    assert last_layer(other, frozen=True) is other.bert.encoder.layer[-1]


def test_a_run_uses_it_unless_it_skips_padding_or_is_told_not_to() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL))
    layer = model.bert.encoder.layer[-1]
    for settings, used in (
        (TrainSettings(), True),
        (TrainSettings(skip_unread=False), False),
        (TrainSettings(length_buckets=False), False),
        (TrainSettings(length_buckets=False, skip_padding=False), True),
    ):
        kernels = Kernels(CPU, settings)
        assert ("train.skip_unread" in kernels.in_use(model, False, False)) == used
        with kernels.used(model):
            assert ("forward" in vars(layer)) == used
        assert "forward" not in vars(layer)
    assert Kernels(torch.device("meta"), TrainSettings()).in_use(model, True, False) == []


def test_few_shot_tuning_reads_every_token_below_its_pooling_layer() -> None:
    source = load_recipe("few_shot_cls").recipe.model
    model, fixed = load_sentence_classifier(resolve_model(source.name, source.revision), ("bad", "good"), None)
    for name in fixed:
        model.get_submodule(name).requires_grad_(False)
    assert last_layer(model) is None
