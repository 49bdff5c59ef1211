"""Adapters on real weights: their numbers equal PEFT's, resuming is exact, and what is saved is what was trained."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from finetune.adapters import AdaLoRA, LoRA
from finetune.config import TextClassificationData
from finetune.errors import TrainingError
from finetune.experiment import build_trainer
from finetune.export import export, refuse_unequal
from finetune.history import read_history
from finetune.optim import build_optimizer
from finetune.trainer import Trainer
from tests.trainers import make_trainer

pytestmark = [
    pytest.mark.equivalence,
    # What PEFT itself says where these tests use it without this toolkit.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

LORA = ("adapter=lora", "adapter.rank=4", "train.lr=1e-3")
ADALORA = ("adapter=adalora", "adapter.init_r=4", "adapter.target_r=2", "train.lr=1e-2")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def batches(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    rows = trainer.task.rows["train"]
    return [trainer.task.collate(rows.__getitems__(keys)) for keys in trainer.plan.updates()]


def test_orthogonality_penalty_equals_pefts(tmp_path: Path) -> None:
    """PEFT's own: what its forward pass adds to the loss that the model computes from labels."""
    trainer = make_trainer(tmp_path, *ADALORA, "train.max_updates=8", "adapter.orthogonality=0.3")
    model, batch = trainer.model, batches(trainer)[0]
    model.eval()
    for parameter in trained(model):
        torch.nn.init.normal_(model.get_parameter(parameter), std=0.3)
    model.zero_grad()
    with_penalty = model.base_model(**batch).loss
    with_penalty.backward()
    theirs = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    plain = F.cross_entropy(trainer.task.logits(model, batch), batch["labels"])
    penalty = trainer.adapter.penalty(model)
    assert penalty is not None
    (plain + penalty).backward()
    assert penalty.item() > 0.1
    assert penalty.item() == pytest.approx((with_penalty - plain).item(), rel=1e-5)
    for name, gradient in theirs.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("every", [1, 3])
def test_every_mask_equals_a_hand_driven_peft_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    total = 14
    settings = (
        f"train.max_updates={total}", "train.micro_batch_size=3", "train.lr_schedule=constant",
        "train.lr_warmup_updates=0", f"adapter.allocate_every={every}",
    )  # fmt: skip
    trainer = make_trainer(tmp_path, *ADALORA, *settings)
    peer: Any = copy.deepcopy(trainer.model)
    config = peer.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (total, 1, 4)

    def mask(model: torch.nn.Module) -> dict[str, list[bool]]:
        values = {name: value for name, value in model.named_parameters() if ".lora_E." in name}
        return {name: (value != 0).flatten().tolist() for name, value in values.items()}

    ours, ranks = [], []
    after_step = AdaLoRA.after_step

    def noted(self: AdaLoRA, model: Any, update: int) -> None:
        after_step(self, model, update)
        ours.append((mask(model), copy.deepcopy(model.peft_config["default"].rank_pattern)))
        ranks.append(sum(sum(some) for some in ours[-1][0].values()))

    monkeypatch.setattr(AdaLoRA, "after_step", noted)
    trainer.fit()

    parameters = [value for value in peer.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": 0.01},
        {"params": [value for value in parameters if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    peer.train()
    for step, batch in enumerate(batches(trainer), 1):
        peer.base_model(**batch).loss.backward()  # whole batch at once, penalty added by PEFT
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        peer.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        assert ours[step - 1] == (mask(peer), peer.peft_config["default"].rank_pattern), f"update {step}"
    assert ranks[0] == trainer.model.base_model.rankallocator.init_bgt
    assert ranks[-1] <= trainer.model.base_model.rankallocator.target_bgt < ranks[0]
    if every == 1:
        assert len(set(ranks)) > 5  # taken away step by step, not all at once
    assert len(set(trainer.adapter.summary(trainer.model)["ranks"].values())) > 1


def test_a_run_that_never_reached_its_budget_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, *ADALORA, "train.max_updates=6")
    monkeypatch.setattr(AdaLoRA, "after_step", lambda *_: None)
    trainer.fit()
    with pytest.raises(TrainingError, match="AdaLoRA never reached its budget"):
        trainer.adapter.summary(trainer.model)


def test_weights_before_the_budget_is_reached_are_never_the_best(tmp_path: Path) -> None:
    settings = ("train.max_updates=10", "train.eval_every_updates=1", "train.early_stop_evals=1")
    trainer = make_trainer(tmp_path, *ADALORA, *settings)
    _, progress = trainer.fit()
    assert progress.best_update >= 7
    assert trainer.adapter.summary(trainer.model)["budget"] == trainer.model.base_model.rankallocator.target_bgt


def test_an_overflow_does_not_stay_in_adaloras_scores(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *ADALORA, "train.max_updates=8")
    model: Any = trainer.model
    for value in model.parameters():
        if value.requires_grad:
            value.grad = torch.ones_like(value)
            value.grad.view(-1)[:2] = torch.tensor([torch.inf, torch.nan])
    trainer.adapter.after_step(model, 1)
    scores = trainer.adapter.state(model)[0]
    assert len(scores) > 100
    assert all(torch.isfinite(score).all() for score in scores.values())


@pytest.mark.parametrize(
    ("adapter", "stops"),
    [
        ((*LORA, "adapter.dropout=0.2", "adapter.lr_ratio=4"), (2, 5)),
        ((*LORA, "adapter.init=pissa"), (3,)),
        ((*ADALORA, "adapter.dropout=0.1"), (1, 3, 5, 6, 7)),
        (("adapter=ia3", "train.lr=1e-2"), (3,)),
        (("adapter=layers", "adapter.lr_decay=0.8", "adapter.freeze_below=3"), (3,)),
    ],
    ids=["lora", "pissa", "adalora", "ia3", "layers"],
)
def test_resume_is_bit_identical(tmp_path: Path, adapter: tuple[str, ...], stops: tuple[int, ...]) -> None:
    """AdaLoRA in its warm-up, while it takes ranks away, at the update that ends that, and after it."""
    settings = (
        "model.dropout=0.1", "train.max_updates=8", "train.micro_batch_size=3", "data.max_train_rows=60",
        "train.eval_every_updates=8", "train.keep_checkpoints=9", "train.save_every_updates=1", *adapter,
    )  # fmt: skip
    whole = make_trainer(tmp_path / "whole", *settings)
    whole.fit()
    expected = whole.checkpoints.read(8)[0]
    for stop in stops:
        folder = tmp_path / f"stopped_{stop}"
        torch.rand(stop)  # whatever random numbers were drawn before must not matter
        resumed = make_trainer(folder, *settings)
        shutil.copytree(whole.checkpoints.path(stop), resumed.checkpoints.path(stop))
        shutil.copy(tmp_path / "whole" / "history.jsonl", folder)
        before, progress = resumed.fit(resume=True)
        assert (before.update, progress.update) == (stop, 8)
        found = resumed.checkpoints.read(8)[0]
        assert found.numbers == expected.numbers
        assert {stem: set(some) for stem, some in found.tensors.items()} == {
            stem: set(some) for stem, some in expected.tensors.items()
        }
        for stem, tensors in expected.tensors.items():
            for name, tensor in tensors.items():
                assert torch.equal(found.tensors[stem][name], tensor), (stop, stem, name)
        assert (folder / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()


@pytest.mark.parametrize("adapter", [LORA, ADALORA], ids=["lora", "adalora"])
def test_the_micro_batch_changes_no_result(tmp_path: Path, adapter: tuple[str, ...]) -> None:
    for name, extra in (("whole", ()), ("parts", ("train.micro_batch_size=3",))):
        make_trainer(tmp_path / name, *adapter, "train.max_updates=6", *extra).fit()
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


EXPORTED = {
    "full": (),
    "frozen": ("adapter=frozen", "train.lr=1e-2"),
    "bitfit": ("adapter=bitfit", "train.lr=1e-2"),
    "lora": LORA,
    "rslora, patterns, gaussian": (
        *LORA, "adapter.rslora=true", "adapter.init=gaussian", 'adapter.rank_pattern={"query": 2}',
        'adapter.alpha_pattern={"key": 3}',
    ),
    "dora": (*LORA, "adapter.dora=true"),
    "pissa": (*LORA, "adapter.init=pissa"),
    "pissa, rslora, patterns": (
        *LORA, "adapter.init=pissa", "adapter.rslora=true", 'adapter.rank_pattern={"query": 2}',
        'adapter.alpha_pattern={"key": 3}',
    ),
    "olora": (*LORA, "adapter.init=olora"),
    "more modules": (*LORA, "adapter.targets=query,value", "adapter.train_modules=pooler.dense"),
    "embeddings": (*LORA, "adapter.targets=query,word_embeddings"),
    "adalora": ADALORA,
    "adalora to almost nothing": ("adapter=adalora", "adapter.init_r=2", "adapter.target_r=1", "train.lr=1e-2"),
    "ia3": ("adapter=ia3", "train.lr=1e-1"),
    "loha": ("adapter=peft", "adapter.config_class=LoHaConfig", 'adapter.settings={"r": 2}', "train.lr=1e-2"),
    "lokr": ("adapter=peft", "adapter.config_class=LoKrConfig", 'adapter.settings={"r": 2}', "train.lr=1e-2"),
    "vera": ("adapter=peft", "adapter.config_class=VeraConfig", "adapter.targets=query", "train.lr=1e-1"),
    "layer norms": (
        "adapter=peft", "adapter.config_class=LNTuningConfig", "adapter.targets=LayerNorm", "train.lr=1e-2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("adapter", list(EXPORTED.values()), ids=list(EXPORTED))
def test_what_is_saved_is_what_was_trained(tmp_path: Path, adapter: tuple[str, ...]) -> None:
    trainer = make_trainer(tmp_path, *adapter, "train.max_updates=8")
    with torch.inference_mode():
        batch = batches(trainer)[0]
        before = trainer.task.logits(trainer.model.eval(), batch)
    trainer.fit()
    with torch.inference_mode():
        live = trainer.task.logits(trainer.model.eval(), batch)
    assert (live - before).abs().max() > 1e-2  # else there was nothing to lose

    exported = export(trainer.task, trainer, tmp_path)

    refuse_unequal(exported["export_check"])
    json.dumps(exported)
    # And once more, as somebody without this toolkit does it.
    from transformers import AutoModelForSequenceClassification

    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(merged).__name__ == "BertForSequenceClassification"
    with torch.inference_mode():
        assert (merged.eval()(**batch).logits - live).abs().max() <= 1e-5 * live.abs().max()
    is_peft = trainer.adapter.name not in ("full", "frozen", "bitfit", "layers")
    assert (tmp_path / "adapter").is_dir() == (tmp_path / "base").is_dir() == is_peft
    assert set(exported["export_check"]["parts"]) == ({"adapter", "model"} if is_peft else {"model"})


@pytest.mark.parametrize(("adapter", "largest"), [(LORA, 0.0), (ADALORA, 1e-6)], ids=["lora", "adalora"])
def test_the_adapter_moves_with_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: tuple[str, ...], largest: float
) -> None:
    trainer = make_trainer(tmp_path / "run", *adapter, "train.max_updates=8")
    trainer.fit()
    batch = batches(trainer)[0]
    with torch.inference_mode():
        live = trainer.task.logits(trainer.model.eval(), batch)
    export(trainer.task, trainer, tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "adapter")

    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    config = PeftConfig.from_pretrained(".")
    assert config.base_model_name_or_path == "../base"
    assert sorted(path.name for path in Path().iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(tmp_path) not in Path("adapter_config.json").read_text()
    base = AutoModelForSequenceClassification.from_pretrained(config.base_model_name_or_path)
    with torch.inference_mode():
        plain = base.eval()(**batch).logits.clone()
        loaded = PeftModel.from_pretrained(base, ".").eval()(**batch).logits
    assert (loaded - live).abs().max() <= largest
    assert (plain - live).abs().max() > 1e-2  # the base is not the trained model


def test_a_hub_base_is_named_by_id_and_revision(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *LORA, "train.max_updates=2")
    trainer.fit()
    files = trainer.task.files
    trainer.task.files = type(files)(files.path, "someone/minilm", "0123abc", files.sha256)
    refuse_unequal(export(trainer.task, trainer, tmp_path)["export_check"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/minilm", "0123abc")
    assert not (tmp_path / "base").exists()


def test_a_model_saved_wrong_fails_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *LORA, "train.max_updates=2")
    save = trainer.task.save

    def damaged(model: Any, folder: Path) -> None:
        with torch.no_grad():
            model.bert.pooler.dense.weight += 1e-3 * ("model" in folder.name)
        save(model, folder)

    trainer.fit()
    trainer.task.save = damaged
    check = export(trainer.task, trainer, tmp_path)["export_check"]
    assert check["parts"]["adapter"]["difference"] == 0.0
    with pytest.raises(TrainingError, match="What was saved in model/ is not what was trained"):
        refuse_unequal(check)


def test_an_adapter_without_the_trained_head_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base keeps the head that it began with, so that only the adapter can bring the trained one."""
    from safetensors.torch import load_file, save_file

    trainer = make_trainer(tmp_path, *LORA, "train.max_updates=4")
    original = trainer.model.get_submodule("base_model.model.classifier.original_module")
    head = {name: value.clone() for name, value in original.state_dict().items()}
    trainer.fit()
    save = LoRA.save

    def untrained(self: LoRA, model: Any, folder: Path, base: str, revision: str | None) -> bool:
        save(self, model, folder, base, revision)
        path = folder / "adapter_model.safetensors"
        kept = {name: head.get(name.rpartition("classifier.")[2], value) for name, value in load_file(path).items()}
        save_file(kept, path, metadata={"format": "pt"})
        return True

    monkeypatch.setattr(LoRA, "save", untrained)
    check = export(trainer.task, trainer, tmp_path)["export_check"]
    with pytest.raises(TrainingError, match="What was saved in adapter/"):
        refuse_unequal(check)
    assert check["parts"]["model"]["difference"] <= 1e-5
    in_base = load_file(tmp_path / "base" / "model.safetensors")
    assert torch.equal(in_base["classifier.weight"], head["weight"])


def parameter_counts(trainer: Trainer) -> tuple[int, int]:
    values = trained(trainer.model)
    head = sum(value.numel() for name, value in values.items() if "classifier" in name)
    return sum(value.numel() for value in values.values()) - head, head


def test_parameter_counts_by_hand(tmp_path: Path) -> None:
    """MiniLM: 6 layers, 384 wide, 1,536 in the feed-forward layers, 2 classes."""
    head = 384 * 2 + 2
    keys_values_and_inputs = 384 + 384 + 384 + 1536
    assert parameter_counts(make_trainer(tmp_path / "a", "adapter=ia3")) == (6 * keys_values_and_inputs, head)
    biases = 384 + 6 * (4 * 384 + 384 + 1536 + 384 + 384) + 384  # embeddings' norm, layers, pooler
    assert parameter_counts(make_trainer(tmp_path / "b", "adapter=bitfit")) == (biases, head)
    matrices = 6 * (4 * (384 + 384) + 2 * (384 + 1536)) + (384 + 384)
    assert parameter_counts(make_trainer(tmp_path / "c", "adapter=lora")) == (8 * matrices, head)
    outputs = 6 * (4 * 384 + 1536 + 384) + 384
    dora = make_trainer(tmp_path / "d", "adapter=lora", "adapter.dora=true")
    assert parameter_counts(dora) == (8 * matrices + outputs, head)


def test_dora_equals_its_formula_and_a_peft_loop(tmp_path: Path) -> None:
    """magnitude * (W + s B A) / |W + s B A|, row by row; and three updates of a plain loop over PEFT's own DoRA."""
    from peft import LoraConfig, get_peft_model

    settings = ("adapter.targets=query", "adapter.dora=true", "train.max_updates=3", "train.lr_schedule=constant")
    trainer = make_trainer(tmp_path, *LORA, *settings, "train.lr_warmup_updates=0", "train.weight_decay=0")
    start = {
        name: value for name, value in trainer.model.state_dict().items() if "lora_" in name or "modules_to" in name
    }
    start = {name: value.clone() for name, value in start.items()}
    plain = make_trainer(tmp_path / "plain", "train.max_updates=3").model
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["query"], use_dora=True, modules_to_save=["classifier"])
    peer = get_peft_model(plain, config)
    peer.load_state_dict(start, strict=False)
    values = [value for value in peer.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=1e-3, weight_decay=0.0)
    peer.train()
    for batch in batches(trainer):
        F.cross_entropy(trainer.task.logits(peer, batch), batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trainer.fit()
    ours, theirs = trained(trainer.model), trained(peer)
    assert set(ours) == set(theirs)
    # Magnitudes are about 2, of which an fp32 rounding is 2e-7; the three updates move them by up to 3e-3.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-6

    layer = trainer.model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    x = torch.randn(5, 384)
    weight = layer.base_layer.weight + 4.0 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    scale = layer.lora_magnitude_vector.default.weight / weight.norm(dim=1)
    expected = x @ (scale[:, None] * weight).T + layer.base_layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert not torch.allclose(layer.base_layer(x), expected, atol=1e-2)


def test_lora_plus_groups_equal_pefts(tmp_path: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    trainer = make_trainer(tmp_path, *LORA, "adapter.lr_ratio=16")
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    scales = trainer.adapter.lr_scales(trainer.model, trainer.task)
    ours = build_optimizer(trainer.model, trainer.settings, scales)
    theirs = create_loraplus_optimizer(trainer.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)

    def rates(optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
        found = {names[id(value)]: group[key] for group in optimizer.param_groups for value in group["params"]}
        # PEFT speeds the head's bias up too; the paper speaks of B alone.
        return {name: rate for name, rate in found.items() if "lora_" in name}

    assert rates(ours, "peak_lr") == pytest.approx(rates(theirs, "lr"))
    assert set(rates(ours, "peak_lr").values()) == {1e-3, 16e-3}


@pytest.mark.parametrize("name", ["bert_lora", "bert_adalora"])
def test_recipes_derive_from_bert_cls(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, "train.max_updates=10", recipe=name)
    assert trainer.adapter.name == name.removeprefix("bert_")
    trainer.fit()
    assert losses(tmp_path)[-1] < 1.0


def test_one_wrong_target_stops_before_anything_is_wrapped(tmp_path: Path) -> None:
    from finetune.errors import ConfigError

    trainer = make_trainer(tmp_path)
    recipe = SimpleNamespace(
        train=trainer.settings, data=TextClassificationData(source="x"), adapter=LoRA(targets=["query", "quary"])
    )
    before = [name for name, _ in trainer.task.model.named_modules()]
    with pytest.raises(ConfigError, match="'quary', which matches no module"):
        build_trainer(SimpleNamespace(recipe=recipe), trainer.task, trainer.accelerator)  # type: ignore[arg-type]
    assert [name for name, _ in trainer.task.model.named_modules()] == before
