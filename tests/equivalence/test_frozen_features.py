"""A head on features that were computed once learns what it learns behind a frozen encoder that runs every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.evaluation.predict import planned_batches
from finetune.frozen_features import reused_features, what_is_kept
from finetune.history import read_history
from finetune.trainer import Trainer
from tests.trainers import make_trainer

pytestmark = pytest.mark.equivalence

FROZEN = ("adapter=frozen", "train.lr=1e-2", "train.max_updates=12", "train.eval_every_updates=6")
IMAGES = ("data.source=digits", "train.batch_size=20", "train.max_updates=8", "train.eval_every_updates=4")


def forwards(model: torch.nn.Module) -> list[int]:
    """Counts the encoder's forward passes as they come."""
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    model.base_model.register_forward_hook(count)
    return passes


def batches(trainer: Trainer, split: str) -> int:
    return len(planned_batches(trainer.task.rows[split], trainer.task.collate, trainer.accelerator.device))


def fitted(trainer: Trainer, reuse: bool) -> tuple[list[dict[str, float]], int]:
    passes, needed = forwards(trainer.model), batches(trainer, "train")
    trainer.adapter.reuse_features = reuse
    with reused_features(trainer):
        before = passes[0]
        assert before == (1 + needed if reuse else 0)  # one pass tells what the head reads
        trainer.fit()
    return read_history(trainer.history.path), passes[0] - before


def compare(make: Callable[[str], Trainer]) -> None:
    trainers = make("reused"), make("plain")
    (reused, passes), (plain, plain_passes) = (fitted(some, some is trainers[0]) for some in trainers)
    # The validation rows once, when they are judged first; no training row.
    assert passes == batches(trainers[1], "valid")
    assert plain_passes >= 8 + 2 * passes
    assert len(reused) == len(plain) > 0
    for ours, theirs in zip(reused, plain, strict=True):
        if "loss" in theirs:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        else:
            assert ours["valid"]["accuracy"] == theirs["valid"]["accuracy"]
    # The encoder is back in its place, and the head learnt the same.
    for (name, value), (_, other) in zip(*(some.model.state_dict().items() for some in trainers), strict=True):
        assert torch.allclose(value.float(), other.float(), atol=2e-5), name
    assert trainers[0].task.rows["train"] is not None
    assert "features" not in trainers[0].task.rows["valid"].__dict__


def test_text(tmp_path: Path) -> None:
    compare(lambda name: make_trainer(tmp_path / name, *FROZEN))


def test_pairs_with_token_types(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    import csv

    make_trainer(tmp_path / "rows")
    with (tmp_path / "rows" / "reviews.csv").open() as file:
        rows = list(csv.DictReader(file))
    with pairs.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "label"])
        for first, second in zip(rows, rows[::-1], strict=True):
            writer.writerow([first["text"], second["text"], first["label"]])
    compare(lambda name: make_trainer(tmp_path / name, *FROZEN, f"data.source={pairs}", recipe="bert_pair"))


def test_images(tmp_path: Path) -> None:
    compare(lambda name: images(tmp_path / name))


def images(folder: Path, *more: str) -> Trainer:
    from accelerate import Accelerator

    from finetune.checkpoint import Checkpoints
    from finetune.experiment import build_trainer
    from finetune.history import History
    from finetune.recipe import load_recipe, override

    folder.mkdir(parents=True)
    loaded = load_recipe("resnet_img")
    override(loaded, ["adapter=frozen", "objective.baselines=false", "train.threads=1", *IMAGES, *more])
    trainer = build_trainer(loaded, loaded.build(), Accelerator(cpu=True, mixed_precision="no"))
    trainer.checkpoints = Checkpoints(folder / "checkpoints", 1, print)
    trainer.history = History(folder / "history.jsonl")
    return trainer


def test_resumed_to_the_bit(tmp_path: Path) -> None:
    whole, halves = make_trainer(tmp_path / "whole", *FROZEN), make_trainer(tmp_path / "halves", *FROZEN)
    with reused_features(whole):
        whole.fit()
    update = halves._update

    def stop_after_five(*args: Any) -> tuple[float, float, int]:
        loss, norm, _ = update(*args)
        return loss, norm, 15 if args[2] == 4 else 0

    halves._update = stop_after_five  # type: ignore[method-assign]
    with reused_features(halves):
        halves.fit()
    again = make_trainer(tmp_path / "halves", *FROZEN)
    with reused_features(again):
        assert again.fit(resume=True)[0].update == 5
    assert read_history(whole.history.path) == read_history(again.history.path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_head_that_reads_the_first_token(tmp_path: Path) -> None:
    """DistilBERT has no pooled output: its head takes the first token's hidden state. Weights are random here."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, *FROZEN)
    config = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)
    model = DistilBertForSequenceClassification(config)
    model.distilbert.requires_grad_(False)
    assert what_is_kept(trainer.task, model) == ("", "first token")


def test_of_the_last_layer_one_token_is_computed(tmp_path: Path) -> None:
    """Its features are those of the whole layer, and where padding is skipped, or the user says so, it is whole."""

    def kept(name: str, *more: str) -> tuple[Any, set[int]]:
        trainer, widths = make_trainer(tmp_path / name, *FROZEN, *more), set()
        dense = trainer.model.bert.encoder.layer[-1].output.dense
        dense.register_forward_hook(lambda *call: widths.add(call[-1].shape[-2]))
        with reused_features(trainer):
            widths.clear()  # of the pass that tells what the head reads
            trainer.task.rows["valid"]
            return trainer.task.rows["valid"].features, widths

    (short, one), (whole, all_of_them) = kept("short"), kept("whole", "train.skip_unread=false")
    assert one == {1}
    assert min(all_of_them) > 1
    np.testing.assert_allclose(short, whole, atol=2e-6)
    packed, rows = kept("packed", "train.length_buckets=false")
    assert min(rows) > 1
    np.testing.assert_allclose(packed, whole, atol=2e-6)


def test_what_varies_or_is_trained_is_not_reused(tmp_path: Path) -> None:
    varied = images(tmp_path / "varied", "objective.augment.rotate=10")
    assert what_is_kept(varied.task, varied.model) == ("training rows are varied anew each epoch", "")
    trainer = make_trainer(tmp_path / "full", "adapter=full")
    assert what_is_kept(trainer.task, trainer.model) == ("part of it is trained", "")
    passes = forwards(trainer.model)
    with reused_features(trainer):
        assert passes == [0]


def test_a_head_that_reads_every_token_is_not_fooled(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *FROZEN)
    encoder, head = trainer.model.base_model, trainer.model.classifier

    def mean_of_tokens(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found = model.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return head(found.last_hidden_state.mean(1))

    trainer.task.logits = mean_of_tokens
    assert what_is_kept(trainer.task, trainer.model)[0] == "the head reads more than one vector of its output"
    assert trainer.model.base_model is encoder
