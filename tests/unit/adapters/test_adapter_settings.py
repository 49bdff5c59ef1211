"""What adapters refuse before anything is trained, on a BERT without pretrained weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from finetune.adapters import (
    IA3,
    AdaLoRA,
    Adapter,
    AnyPeft,
    BitFit,
    Frozen,
    Full,
    Layers,
    LoRA,
    PrefixTuning,
    PromptTuning,
    adapter_named,
)
from finetune.adapters.adapter import head_parameters, leave_fixed
from finetune.adapters.layers import layer_depths
from finetune.adapters.targets import find_targets
from finetune.config import TrainSettings
from finetune.errors import ConfigError
from finetune.optim import build_optimizer
from finetune.report.ranks import rank_table

pytestmark = pytest.mark.unit

LAYERS, WIDTH = 3, 16


def bert() -> torch.nn.Module:
    config = BertConfig(
        vocab_size=30, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=24
    )
    return BertForSequenceClassification(config)


def task_of(model: torch.nn.Module, **facts: Any) -> Any:
    usual = {"kind": "text-classification", "head_modules": ["classifier"], "target_modules": ("all-linear",)}
    return SimpleNamespace(model=model, **{**usual, "fixed_modules": (), **facts})


@pytest.fixture
def task() -> Any:
    return task_of(bert())


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (LoRA(targets=["querry"]), r"adapter\.targets has 'querry', which matches no module.*\n.*Did you mean query\?"),
        (LoRA(targets=["query", "valeu"]), r"'valeu', which matches no module"),
        (LoRA(targets=["query", r".*layer\.9\..*"]), r"layer.*9.*matches no module"),
        (LoRA(targets=["classifier"]), r"'classifier', which is only the head"),
        (LoRA(targets=["LayerNorm"]), r"LayerNorm is a LayerNorm"),
        (LoRA(targets=["("]), r"neither a module of this model nor a regular expression"),
        (LoRA(targets=["all-conv"]), r"'all-conv', which matches no module"),
        (LoRA(rank=WIDTH + 1), r"adapter\.rank=17 is above the rank of .*query, whose weight is 16 x 16"),
        (LoRA(rank_pattern={"query": 20}), r"adapter\.rank_pattern=20 is above the rank"),
        (LoRA(rank_pattern={"quary": 4}), r"adapter\.rank_pattern has 'quary'"),
        (LoRA(alpha_pattern={"(": 4}), r"adapter\.alpha_pattern has '\(', which is no regular expression"),
        (LoRA(dropout=0.1, targets=["query", "word_embeddings"]), r"dropout is ignored by .*word_embeddings, an Em"),
        (LoRA(init="pissa", targets=["word_embeddings"]), r"adapter\.init=pissa can't start .*an? Embedding"),
        (LoRA(quantize="nf4", targets=["word_embeddings"]), r"adapter\.quantize=nf4 can't hold .*, an? Embedding"),
        (LoRA(quantize="nf4", dora=True, targets=["dense"]), r"quantize=nf4 does not go with adapter\.dora=true"),
        (LoRA(quantize="nf4", init="pissa"), r"quantize=nf4 does not go with adapter\.init=pissa"),
        (LoRA(train_modules=["poolre"]), r"adapter\.train_modules has 'poolre'"),
        (AdaLoRA(init_r=8, target_r=8), r"adapter\.init_r=8 is not above adapter\.target_r=8"),
        (AdaLoRA(init_r=4, target_r=8), r"adapter\.init_r=4 is not above"),
        (AdaLoRA(init_r=17, target_r=8), r"adapter\.init_r=17 is above the rank"),
        (AdaLoRA(warmup_share=0.5, final_share=0.5), r"no time to take ranks away: of 100 updates 50 are warm-up"),
        (AdaLoRA(targets=["word_embeddings"]), r"word_embeddings is a Embedding"),
        (IA3(targets=["key"], feedforward=["output.dense"]), r"adapter\.feedforward means .*, which is no target"),
        (IA3(feedforward=["output.dense"]), r"adapter\.feedforward goes with adapter\.targets"),
        (AnyPeft(), r"adapter\.config_class=none is no configuration class"),
        (AnyPeft(config_class="LohaConfig"), r"Did you mean LoHaConfig\?"),
        (AnyPeft(config_class="AdaLoraConfig"), r"adapter=adalora"),
        (AnyPeft(config_class="PromptTuningConfig"), r"adapts no modules"),
        (AnyPeft(config_class="LoHaConfig", settings={"rr": 4}), r"'rr', which is no field of LoHaConfig"),
        (AnyPeft(config_class="LoHaConfig", settings={"r": "4"}), r"r=\"4\" is refused: .*valid integer"),
        (AnyPeft(config_class="LoHaConfig", settings={"r": 4.5}), r"r=4\.5 is refused"),
        (AnyPeft(config_class="LoHaConfig", settings={"target_modules": ["q"]}), r"which is set by adapter\.targets"),
        (AnyPeft(config_class="LoraConfig", settings={"bias": "some"}), r"bias=\"some\" is refused"),
        (Layers(), r"adapter=layers does nothing"),
        (Layers(freeze_below=LAYERS + 1), r"freeze_below=4, but the model has 3 layers"),
        (Layers(lr_decay=0.9, reuse_features=False), r"reuse_features is ignored.*\n.*adapter\.freeze_below"),
        (Layers(unfreeze_every_updates=30), r"would unfreeze the last of 4 parts after 120 updates.*\n.*=24 or less"),
        (Layers(unfreeze_every_updates=1, freeze_below=LAYERS), r"has nothing to unfreeze"),
        (PromptTuning(), r"adapter=prompt puts virtual tokens before .* task is text-classification.*\n.*lora"),
        (PrefixTuning(), r"adapter=prefix puts virtual tokens before"),
    ],
)
def test_what_a_model_or_plan_cant_have_is_refused(task: Any, adapter: Adapter, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        adapter.check(task, 100)


def gpt2() -> torch.nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=8))


def without_biases() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False))


@pytest.mark.parametrize(
    ("make", "adapter", "says"),
    [
        (without_biases, BitFit(), r"finds no biases"),
        (without_biases, Layers(lr_decay=0.9), r"Sequential has no list of layers"),
        (without_biases, Frozen(), r"has no head to train"),
        (without_biases, IA3(), r"which modules \(IA\)\^3 scales in a Sequential is not known"),
        *((gpt2, kind(head_lr_ratio=2.0), r"head_lr_ratio is ignored") for kind in (Full, LoRA, AdaLoRA, IA3, BitFit)),
        (gpt2, Layers(lr_decay=0.9, head_lr_ratio=2.0), r"head_lr_ratio is ignored"),
    ],
)
def test_what_is_not_for_every_model_is_refused(make: Any, adapter: Adapter, says: str) -> None:
    task = task_of(make(), head_modules=[])
    with pytest.raises(ConfigError, match=says):
        adapter.check(task, 100)


def test_ways_to_train_that_an_adapter_cant_go_with_are_refused() -> None:
    sharded: Any = SimpleNamespace(distributed_type="FSDP")
    alone: Any = SimpleNamespace(distributed_type="NO")
    again = TrainSettings(activation_checkpointing=True)
    with pytest.raises(ConfigError, match="sharded weights can't follow"):
        Layers(unfreeze_every_updates=2).check_training(TrainSettings(), sharded)
    with pytest.raises(ConfigError, match=r"adapter=adalora can't be trained with sharded weights.*\n.*adapter=lora"):
        AdaLoRA().check_training(TrainSettings(), sharded)
    AdaLoRA().check_training(TrainSettings(), alone)
    LoRA().check_training(TrainSettings(), sharded)
    with pytest.raises(ConfigError, match="activation_checkpointing=true would drop what adapter=prefix trains"):
        PrefixTuning().check_training(again, alone)
    Layers(lr_decay=0.9).check_training(again, sharded)
    PromptTuning().check_training(again, alone)


def test_unfreezing_goes_down_layer_by_layer_and_leaves_fixed_modules_alone() -> None:
    model = bert()
    task = task_of(model, fixed_modules=("bert.pooler",))
    adapter = Layers(unfreeze_every_updates=2)
    model = adapter.wrap(model, task, 20)
    leave_fixed(model, task)
    ever = {name for name, value in model.named_parameters() if value.requires_grad}
    trained = {}
    for update in range(12):
        changed = adapter.before_update(model, task, update)
        assert changed == (update % 2 == 0 and update <= 2 * (LAYERS + 1))
        trained[update] = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained[0] == {"classifier.weight", "classifier.bias"}
    for update in (3, 5, 7):
        lowest = LAYERS - update // 2
        assert {name.split(".")[3] for name in trained[update] if "layer" in name.split(".")} == {
            str(layer) for layer in range(lowest, LAYERS)
        }
        assert not any("embeddings" in name for name in trained[update])
    assert trained[8] == trained[11] == ever
    assert not any("pooler" in name for name in ever)


def test_a_plan_too_short_for_adalora_is_refused(task: Any) -> None:
    AdaLoRA().check(task, 5)
    with pytest.raises(ConfigError, match="no time to take ranks away"):
        AdaLoRA().check(task, 2)


@pytest.mark.parametrize("updates", [4, 5, 10, 57, 1000, 12345])
def test_adalora_phases_leave_updates_to_take_ranks_away(updates: int) -> None:
    first, last = AdaLoRA().phases(updates)
    assert first == round(0.1 * updates)
    assert last == max(1, round(0.3 * updates))
    assert first < updates - last


def test_settings_that_an_adapter_does_not_have_are_refused() -> None:
    for adapter in (Full(), LoRA(), AdaLoRA(), IA3()):
        with pytest.raises(ValueError, match="no attribute"):
            adapter.ranks_of_it = 3  # type: ignore[attr-defined, union-attr]
    with pytest.raises(ValueError, match="dora"):
        AdaLoRA(dora=True)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"lroa is not an adapter\.\n  Did you mean lora\?"):
        adapter_named("lroa")


def test_targets_by_name_end_regex_and_all(task: Any) -> None:
    def found(*patterns: str) -> list[str]:
        return find_targets(task.model, patterns, task, ("Linear",), "adapter.targets")

    layers = [f"bert.encoder.layer.{layer}." for layer in range(LAYERS)]
    assert found("query") == [f"{layer}attention.self.query" for layer in layers]
    assert found("output.dense") == [
        name for layer in layers for name in (f"{layer}attention.output.dense", f"{layer}output.dense")
    ]
    expected = [f"{layers[1]}attention.self.{kind}" for kind in ("key", "value")]
    assert found(r".*layer\.1\.(attention\.self\.)?(key|value)") == expected
    every = [name for name, module in task.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert found("all-linear") == [name for name in every if name != "classifier"]
    assert "bert.pooler.dense" in found("all-linear")


def test_all_linear_leaves_a_language_models_output_alone() -> None:
    model = gpt2()
    found = find_targets(
        model, ["all-linear"], task_of(model, head_modules=[]), ("Linear", "Conv1D"), "adapter.targets"
    )
    assert len(found) == 2 * 4
    assert "lm_head" not in found


def test_layer_depths_and_rates() -> None:
    model = bert()
    depths, layers = layer_depths(model)
    assert layers == LAYERS
    assert depths["bert.embeddings.word_embeddings.weight"] == 0
    assert depths["bert.encoder.layer.2.output.dense.bias"] == 3
    assert depths["bert.pooler.dense.weight"] == depths["classifier.bias"] == 4
    adapter = Layers(freeze_below=2, lr_decay=0.5, head_lr_ratio=10.0)
    model = adapter.wrap(model, task_of(model), 10)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in trained if "layer" in name.split(".")} == {"2"}
    assert not any("embeddings" in name for name in trained)
    scales = adapter.lr_scales(model, task_of(model))
    assert scales["bert.encoder.layer.2.output.dense.bias"] == 0.5
    assert scales["bert.encoder.layer.0.output.dense.bias"] == 0.125
    assert "bert.pooler.dense.weight" not in scales
    assert scales["classifier.weight"] == 10.0
    adapter.train_mode(model)
    assert not model.get_submodule("bert.embeddings").training
    assert not model.get_submodule("bert.encoder.layer.1").training
    assert model.get_submodule("bert.encoder.layer.2").training


def test_the_rates_reach_the_optimizer() -> None:
    model = bert()
    adapter = Layers(lr_decay=0.5)
    task = task_of(model)
    model = adapter.wrap(model, task, 10)
    optimizer = build_optimizer(model, TrainSettings(lr=1e-2), adapter.lr_scales(model, task))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(some)]: group["peak_lr"] for group in optimizer.param_groups for some in group["params"]}
    assert len(rates) == len(names)
    assert rates["classifier.weight"] == 1e-2
    assert rates["bert.encoder.layer.0.attention.self.query.weight"] == pytest.approx(1e-2 * 0.5**3)
    assert rates["bert.embeddings.LayerNorm.bias"] == pytest.approx(1e-2 * 0.5**4)
    assert optimizer.param_groups[0]["peak_lr"] == 1e-2
    decays = {names[id(some)]: group["weight_decay"] for group in optimizer.param_groups for some in group["params"]}
    assert decays["bert.encoder.layer.0.attention.self.query.weight"] == 0.01
    assert decays["bert.encoder.layer.0.attention.self.query.bias"] == 0.0


def query_of(adapter: Adapter) -> tuple[Any, torch.Tensor]:
    """The layer that an adapter made of a BERT's first query, and the weight that was there before."""
    torch.manual_seed(0)
    model: Any = bert()
    weight = model.bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    wrapped: Any = adapter.wrap(model, task_of(model), 100)
    return wrapped.base_model.model.bert.encoder.layer[0].attention.self.query, weight


def test_rank_alpha_dropout_and_patterns_reach_the_layers() -> None:
    settings: dict[str, Any] = {"rank": 4, "alpha": 6, "dropout": 0.3, "targets": ["query", "value"]}
    for own, rank, scale in (
        ({}, 4, 6 / 4),
        ({"rslora": True}, 4, 6 / 2),
        ({"rank_pattern": {"query": 2}}, 2, 6 / 2),
        ({"alpha_pattern": {"query": 10}}, 4, 10 / 4),
        ({"rank_pattern": {"value": 2}, "alpha_pattern": {"value": 3}}, 4, 6 / 4),
    ):
        layer, _ = query_of(LoRA(**settings, **own))
        assert layer.lora_A["default"].weight.shape == (rank, WIDTH)
        assert layer.scaling["default"] == pytest.approx(scale)
        assert layer.lora_dropout["default"].p == 0.3


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_pissa_and_olora_take_their_directions_out_of_the_weight(init: Any) -> None:
    layer, weight = query_of(LoRA(rank=4, alpha=4, init=init, targets=["query"]))
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    if init == "pissa":
        u, s, v = torch.linalg.svd(weight)
        expected = u[:, :4] * s[:4] @ v[:4]
    else:
        q, r = torch.linalg.qr(weight)
        expected = q[:, :4] @ r[:4]
    assert torch.allclose(update, expected, atol=1e-6)
    assert torch.allclose(layer.base_layer.weight + update, weight, atol=1e-6)


def test_a_gaussian_start_is_no_uniform_one() -> None:
    bound = 1 / WIDTH**0.5  # of Kaiming's uniform start
    largest = {
        init: query_of(LoRA(rank=4, init=init))[0].lora_A["default"].weight.detach().abs().max().item()
        for init in ("default", "gaussian")
    }
    assert largest["default"] <= bound < largest["gaussian"]


def test_adaloras_settings_reach_its_configuration(task: Any) -> None:
    adapter = AdaLoRA(
        target_r=3, init_r=5, alpha=7, dropout=0.2, warmup_share=0.2, final_share=0.4, allocate_every=6, beta1=0.7,
        beta2=0.6, orthogonality=0.1,
    )  # fmt: skip
    config = adapter.peft_config(task.model, task, 100)
    found = (config.target_r, config.init_r, config.lora_alpha, config.lora_dropout, config.tinit, config.tfinal)
    assert found == (3, 5, 7, 0.2, 20, 40)
    assert (config.deltaT, config.beta1, config.beta2, config.total_step) == (6, 0.7, 0.6, 100)
    assert config.orth_reg_weight == 0.1


def test_virtual_tokens_start_in_the_vocabulary_or_at_random() -> None:
    for init in ("vocabulary", "random"):
        model: Any = gpt2()
        words = {tuple(row) for row in model.transformer.wte.weight.tolist()}
        task = task_of(model, kind="text-generation", head_modules=[])
        wrapped: Any = PromptTuning(tokens=3, init=init).wrap(model, task, 10)
        rows = wrapped.prompt_encoder["default"].embedding.weight.tolist()
        assert len(rows) == 3
        assert all((tuple(row) in words) == (init == "vocabulary") for row in rows)


def test_factors_and_magnitudes_are_not_decayed(task: Any) -> None:
    for adapter, marker in ((IA3(), "ia3_l"), (LoRA(dora=True), "lora_magnitude_vector")):
        task = task_of(bert())
        model = adapter.wrap(task.model, task, 10)
        optimizer = build_optimizer(model, TrainSettings(weight_decay=0.1), {}, adapter.undecayed(model))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed = {names[id(x)] for group in optimizer.param_groups if group["weight_decay"] for x in group["params"]}
        assert any(marker in name for name in names.values())
        assert not any(marker in name for name in decayed)
        assert any("classifier" in name for name in decayed)


@pytest.mark.parametrize("adapter", [Full(), Frozen(), BitFit(), LoRA(), AdaLoRA(), IA3()])
def test_the_head_is_trained_and_found_by_every_adapter(adapter: Adapter) -> None:
    task = task_of(bert())
    model = adapter.wrap(task.model, task, 100)
    found = head_parameters(model, task)
    assert len(found) == 2
    adapter.head_lr_ratio = 5.0
    assert {scale for name, scale in adapter.lr_scales(model, task).items() if name in found} == {5.0}


def test_batch_norm_under_an_adapter_keeps_its_statistics() -> None:
    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(3, 8, 3))
    model.add_module("norm", torch.nn.BatchNorm2d(8))
    model.add_module("classifier", torch.nn.Conv2d(8, 2, 1))
    task = task_of(model, target_modules=("all-conv",))
    adapter = LoRA(rank=2)
    adapter.check(task, 10)
    wrapped = adapter.wrap(model, task, 10)
    adapter.train_mode(wrapped)
    wrapped(torch.randn(4, 3, 8, 8))
    assert int(wrapped.base_model.model.norm.num_batches_tracked) == 0  # type: ignore[union-attr, operator]
    grouped = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=4))
    with pytest.raises(ConfigError, match="no multiple of the 4 groups"):
        LoRA(rank=6).check(task_of(grouped, target_modules=("all-conv",), head_modules=[]), 10)


def test_rank_table_has_a_row_for_each_kind_of_module_and_a_column_for_each_layer() -> None:
    ranks = {f"bert.encoder.layer.{n}.{kind}": n + len(kind) for n in range(40) for kind in ("query", "output.dense")}
    table = rank_table({**ranks, "bert.pooler.dense": 7})
    assert max(map(len, table.splitlines())) <= 100
    queries = [line.split() for line in table.splitlines() if line.startswith("query")]
    assert queries[1] == ["query", *map(str, range(21, 37))]
    assert table.splitlines()[-1] == f"{sum(ranks.values()) + 7} ranks in 81 matrices: 5 to 51 each"
