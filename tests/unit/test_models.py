"""Model configurations: every dropout is found under whatever name the architecture gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from finetune.errors import ConfigError
from finetune.models import check_positions, head_modules, set_dropout

pytestmark = pytest.mark.unit

SMALL = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
    "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "deberta-v2": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "electra": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 8,
    },
    "albert": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 8,
    },
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2},
    "modernbert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
}  # fmt: skip


def config_of(kind: str) -> Any:
    # A tiny vocabulary keeps this in milliseconds; nothing pretrained is read.
    return transformers.AutoConfig.for_model(kind, vocab_size=16, num_labels=2, pad_token_id=0, **SMALL[kind])


def dropouts(model: torch.nn.Module) -> set[float]:
    """Every dropout probability that a built model would use, wherever it keeps it."""
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    for module in model.modules():
        for name, value in vars(module).items():
            if ("dropout" in name or name.endswith("drop_prob")) and isinstance(value, float):
                found.add(value)
    return found


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_every_dropout_of_the_built_model_is_what_was_asked_for(kind: str, probability: float) -> None:
    config = config_of(kind)
    set_dropout(config, probability, kind)
    model = AutoModelForSequenceClassification.from_config(config)
    assert dropouts(model) <= {probability, 0.0} if kind == "modernbert" else dropouts(model) == {probability}


def test_nothing_but_dropout_is_changed() -> None:
    before, after = config_of("bert"), config_of("bert")
    set_dropout(after, 0.25, "bert")
    changed = {key for key, value in after.to_dict().items() if before.to_dict()[key] != value}
    assert changed == {"attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout_prob"}


def test_a_model_without_dropout_says_so() -> None:
    class Plain(transformers.PretrainedConfig):
        model_type = "plain"

    with pytest.raises(ConfigError, match=r"model.dropout is ignored by plain"):
        set_dropout(Plain(), 0.1, "plain")


@pytest.mark.parametrize(
    ("kind", "takes"), [("bert", 20), ("roberta", 19), ("distilbert", 20), ("electra", 20), ("modernbert", None)]
)
def test_rows_longer_than_the_models_positions_are_refused_and_no_others(kind: str, takes: int | None) -> None:
    config = config_of(kind)
    config.max_position_embeddings = 20
    model = AutoModelForSequenceClassification.from_config(config)
    if takes is None:
        check_positions(model, 10_000)
        return
    check_positions(model, takes)
    # The model itself agrees about where its table ends.
    model(input_ids=torch.ones(1, takes, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.ones(1, takes + 1, dtype=torch.long))
    with pytest.raises(ConfigError, match=f"has {takes + 1} tokens, but the model takes {takes}") as caught:
        check_positions(model, takes + 1)
    assert f"data.max_tokens={takes}" in caught.value.fix


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("bert", ["classifier"]),
        ("distilbert", ["classifier", "pre_classifier"]),
        ("roberta", ["classifier"]),
        ("gpt2", ["score"]),
        ("electra", ["classifier"]),
    ],
)
def test_the_head_is_found_under_its_architectures_name(kind: str, heads: list[str]) -> None:
    model = AutoModelForSequenceClassification.from_config(config_of(kind))
    assert sorted(head_modules(model, [f"{name}.weight" for name in heads])) == heads


def test_what_is_new_inside_the_encoder_is_trained_with_the_head() -> None:
    model = AutoModelForSequenceClassification.from_config(config_of("bert"))
    new = ["classifier.bias", "classifier.weight", "bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    assert head_modules(model, new) == ["classifier", "bert.pooler.dense"]
    assert isinstance(model.get_submodule("bert.pooler.dense"), torch.nn.Linear)


def test_blocks_longer_than_gpt2s_positions_are_refused_with_their_own_setting() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    check_positions(model, 16)
    with pytest.raises(ConfigError, match="the model takes 16") as caught:
        check_positions(model, 17, "data.block_tokens")
    assert "data.block_tokens=16" in caught.value.fix
