"""Adapters on GPT-2's own layers, whose weights are [in, out]: merged and reloaded they are what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from finetune.checkpoint import Checkpoints
from finetune.data.batching import RowKey
from finetune.data.loader import load_data
from finetune.errors import ConfigError
from finetune.experiment import build_trainer
from finetune.export import export, load_export, refuse_unequal
from finetune.history import History, read_history
from finetune.language_settings import PlainTextData
from finetune.recipe import load_recipe, override
from finetune.trainer import Trainer

pytestmark = [
    pytest.mark.equivalence,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

LORA = ("adapter=lora", "adapter.rank=8", "train.lr=3e-3")
# 64 positions, of which the virtual tokens take their own.
PROMPT = ("adapter=prompt", "adapter.tokens=16", "data.block_tokens=48", "train.lr=3e-1")
PREFIX = ("adapter=prefix", "adapter.tokens=16", "data.block_tokens=48", "train.lr=1e-1")
VERA = ("adapter=peft", "adapter.config_class=VeraConfig", 'adapter.settings={"r": 16}', "train.lr=1e-1")
LOHA = ("adapter=peft", "adapter.config_class=LoHaConfig", 'adapter.settings={"r": 4}', "train.lr=1e-2")
ADALORA = ("adapter=adalora", "adapter.init_r=8", "adapter.target_r=4", "train.lr=1e-2")
# The four matrices of a GPT-2 layer, all of them Conv1D.
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def trainer_of(recipe: str, folder: Path, *overrides: str) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_recipe(recipe)
    override(loaded, ["train.threads=1", "train.precision=fp32", "objective.baselines=false", *overrides])
    trainer = build_trainer(loaded, loaded.build(), Accelerator(cpu=True, mixed_precision="no"))
    trainer.checkpoints = Checkpoints(folder / "checkpoints", 1, print)
    trainer.history = History(folder / "history.jsonl")
    return trainer


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text file with the beginnings of real tales."""
    data = load_data(PlainTextData(source="grimm_tales"), {"text": None})
    path = tmp_path_factory.mktemp("tales") / "tales.txt"
    path.write_text("\n\n".join(row["text"][:2000] for row in data.splits["train"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base_model(tales: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that gpt2_scratch trained for 100 updates on those."""
    folder = tmp_path_factory.mktemp("scratch")
    trainer = trainer_of(
        "gpt2_scratch",
        folder,
        f"data.source={tales}",
        "data.valid_share=0.1",
        "train.max_updates=100",
        "train.eval_every_updates=100",
    )
    trainer.fit()
    losses = [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    refuse_unequal(export(trainer.task, trainer, folder)["export_check"])
    return folder / "model"


def adapted(tales: Path, base_model: Path, folder: Path, *adapter: str) -> Trainer:
    return trainer_of(
        "gpt2_clm", folder, f"data.source={tales}", "data.block_tokens=64", f"model.name={base_model}",
        "model.dropout=0", "train.batch_size=8", "train.max_updates=20", *adapter,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "largest"),
    [
        (LORA, 0.0),
        ((*LORA, "adapter.dora=true"), 0.0),
        ((*LORA, "adapter.targets=c_attn,mlp.c_proj"), 0.0),
        (ADALORA, 1e-6),
    ],
    ids=["lora", "dora", "some layers", "adalora"],
)
def test_merged_and_reloaded_conv1d_layers_are_what_was_trained(
    tales: Path, base_model: Path, tmp_path: Path, adapter: tuple[str, ...], largest: float
) -> None:
    trainer = adapted(tales, base_model, tmp_path, *adapter)
    rows = trainer.task.rows["valid"]
    batch = trainer.task.collate(rows.__getitems__([RowKey(0, index) for index in range(8)]))

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(input_ids=batch["input_ids"]).logits

    before = logits(trainer.model)
    trainer.fit()
    live = logits(trainer.model)
    assert (live - before).abs().max() > 1e-1  # else there was nothing to lose
    changed = {name.split(".lora_")[0] for name, _ in trainer.model.named_parameters() if ".lora_" in name}
    wanted = ("attn.c_attn", "mlp.c_proj") if "adapter.targets=c_attn,mlp.c_proj" in adapter else LAYERS
    assert {name.partition(".h.")[2].partition(".")[2] for name in changed} == set(wanted)
    assert len(changed) == 4 * len(wanted)

    exported = export(trainer.task, trainer, tmp_path)

    refuse_unequal(exported["export_check"])
    if "ranks" in exported["adapter_summary"]:
        ranks = exported["adapter_summary"]["ranks"]
        assert sum(ranks.values()) == 16 * 4
        assert len(set(ranks.values())) > 1
    # And once more, as somebody without this toolkit does it.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(merged) is GPT2LMHeadModel
    assert (logits(merged) - live).abs().max() <= 1e-5 * live.abs().max()
    plain_base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(plain_base), before)
    reloaded = PeftModel.from_pretrained(plain_base, tmp_path / "adapter")
    assert (logits(reloaded) - live).abs().max() <= largest * live.abs().max()


def test_a_merged_matrix_is_the_update_turned_over(tales: Path, base_model: Path, tmp_path: Path) -> None:
    """By hand: W [in, out] + scale * (B A)', since A is [rank, in] and B [out, rank]."""
    trainer = adapted(tales, base_model, tmp_path, *LORA)
    trainer.fit()
    layer = trainer.model.get_submodule("base_model.model.transformer.h.2.mlp.c_fc")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + layer.scaling["default"] * (b @ a).T
    expected, before = expected.detach().clone(), layer.base_layer.weight.detach().clone()
    merged = trainer.adapter.plain(trainer.model).transformer.h[2].mlp.c_fc.weight
    assert torch.allclose(merged, expected, atol=1e-7)
    assert not torch.allclose(merged, before, atol=1e-3)


def test_losses_with_virtual_tokens_equal_pefts(tales: Path, base_model: Path, tmp_path: Path) -> None:
    """PEFT's own: what the model computes from labels, which PEFT fills up for the virtual tokens."""
    for adapter in (PROMPT, PREFIX):
        trainer = adapted(tales, base_model, tmp_path, *adapter)
        model = trainer.model.eval()
        torch.manual_seed(0)
        torch.nn.init.normal_(model.prompt_encoder.default.embedding.weight, std=2.0)
        batch = trainer.task.collate(trainer.task.rows["train"].__getitems__([RowKey(0, index) for index in range(4)]))
        ids, targets = batch["input_ids"], batch["targets"]
        ours = trainer.task.loss_sum(model, batch) / trainer.task.count(batch)
        # The model compares position t with labels[t + 1], so the last target has no place there.
        labels = torch.cat([torch.full_like(ids[:, :1], -100), targets[:, :-1]], 1)
        theirs = model(input_ids=ids, labels=labels, use_cache=False).loss
        counted = trainer.task.count({"targets": targets[:, :-1]})
        last = trainer.task.loss_sum(model, batch) - theirs * counted
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        expected = torch.nn.functional.cross_entropy(logits, targets[:, -1], ignore_index=-100, reduction="sum")
        assert last.item() == pytest.approx(expected.item(), rel=1e-3)
        plain = trainer.task.loss_sum(model.get_base_model(), batch) / trainer.task.count(batch)
        assert abs(plain.item() - ours.item()) > 1e-2


@pytest.mark.parametrize("adapter", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_virtual_tokens_are_trained_resumed_to_the_bit_and_reloaded_as_they_were(
    tales: Path, base_model: Path, tmp_path: Path, adapter: tuple[str, ...]
) -> None:
    settings = (*adapter, "train.save_every_updates=8", "train.micro_batch_size=3", "train.eval_every_updates=20")
    trainer = adapted(tales, base_model, tmp_path / "whole", *settings)
    trainer.checkpoints.keep = 9
    batch = trainer.task.collate(trainer.task.rows["valid"].__getitems__([RowKey(0, index) for index in range(8)]))

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(input_ids=batch["input_ids"], use_cache=False).logits

    before, start = logits(trainer.model), trainer.model.get_base_model().state_dict()
    start = {name: value.clone() for name, value in start.items()}
    trainer.fit()
    live = logits(trainer.model)
    losses = [line["loss"] for line in read_history(tmp_path / "whole" / "history.jsonl") if "loss" in line]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (live - before).abs().max() > 1e-1
    assert all(torch.equal(value, start[name]) for name, value in trainer.model.get_base_model().state_dict().items())
    assert [name for name, value in trainer.model.named_parameters() if value.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]

    resumed = adapted(tales, base_model, tmp_path / "resumed", *settings)
    shutil.copytree(trainer.checkpoints.path(8), resumed.checkpoints.path(8))
    shutil.copy(tmp_path / "whole" / "history.jsonl", tmp_path / "resumed")
    resumed.fit(resume=True)
    assert torch.equal(logits(resumed.model), live)
    histories = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("whole", "resumed")]
    assert histories[0] == histories[1]

    exported = export(trainer.task, trainer, tmp_path / "whole")
    refuse_unequal(exported["export_check"])
    assert set(exported["export_check"]["parts"]) == {"adapter"}
    assert exported["export_check"]["parts"]["adapter"]["difference"] == 0.0
    assert not (tmp_path / "whole" / "model").exists()
    # And once more, as somebody without this toolkit does it.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "base")
    reloaded = PeftModel.from_pretrained(base, tmp_path / "whole" / "adapter")
    assert torch.equal(logits(reloaded), live)
    assert torch.equal(logits(load_export(trainer.task, trainer.adapter, tmp_path / "whole")), live)


def test_virtual_tokens_that_leave_no_positions_are_refused(tales: Path, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes 64, of which adapter.tokens takes up 20.*\n.*block_tokens=44"):
        adapted(tales, base_model, tmp_path, "adapter=prompt")


def test_other_methods_of_peft_go_into_conv1d_layers_or_say_that_they_can_not(
    tales: Path, base_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"doesn't fit this model: .*Conv1D.* not supported"):
        adapted(tales, base_model, tmp_path / "loha", *LOHA)
    trainer = adapted(tales, base_model, tmp_path / "vera", *VERA)
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.fit()
    assert all(not torch.equal(value, trainer.model.get_parameter(name)) for name, value in start.items())
    assert len(start) == 2 * 4 * len(LAYERS)
    check = export(trainer.task, trainer, tmp_path / "vera")["export_check"]
    refuse_unequal(check)
    assert check["parts"]["adapter"]["difference"] == 0.0
