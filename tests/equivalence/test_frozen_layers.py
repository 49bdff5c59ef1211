"""Upper layers on hidden states that were computed once learn what they do above frozen layers that run every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.batching import RowKey
from finetune.data.cache import cache_folder
from finetune.estimate import print_plan
from finetune.evaluation.predict import planned_batches
from finetune.frozen_layers import reused_layers, reuses_layers
from finetune.history import read_history
from finetune.options import RunOptions
from finetune.trainer import Trainer
from tests.forks import forks
from tests.integration.test_launch_line import ROOT, environment, record_of
from tests.trainers import make_trainer, write_reviews

pytestmark = pytest.mark.equivalence
# Two epochs and a half of 160 rows, with dropout in the layers that are trained.
SETTINGS = (
    "adapter=layers", "adapter.freeze_below=4", "model.dropout=0.1", "train.batch_size=32", "train.epochs=2.5",
    "train.lr=1e-3", "train.max_updates=12", "train.eval_every_updates=6", "train.skip_unread=true",
)  # fmt: skip


def passes(trainer: Trainer) -> dict[int, int]:
    """Counts what the lowest layer and the lowest trained one compute, as it comes."""
    counted = {0: 0, 4: 0}
    for number in counted:
        dense = trainer.model.bert.encoder.layer[number].attention.output.dense

        def count(*_: Any, number: int = number) -> None:
            counted[number] += 1

        dense.register_forward_hook(count)
    return counted


def batches(trainer: Trainer) -> int:
    both = [trainer.task.rows[name] for name in ("train", "valid")]
    return sum(len(planned_batches(rows, trainer.task.collate, trainer.accelerator.device)) for rows in both)


@pytest.mark.parametrize(
    "more",
    [(), ("adapter.lr_decay=0.5", "train.activation_checkpointing=true"), ("adapter.unfreeze_every_updates=4",)],
    ids=["frozen", "rates", "unfreezing"],
)
def test_a_training_is_that_of_layers_that_run_every_time(tmp_path: Path, more: tuple[str, ...]) -> None:
    reused, plain = (make_trainer(tmp_path / name, *SETTINGS, *more) for name in ("reused", "plain"))
    plain.adapter.reuse_features = False
    counts = passes(reused), passes(plain)
    for trainer in (reused, plain):
        rows = trainer.task.rows["train"]
        with reused_layers(trainer):
            assert (trainer.task.rows["train"] is rows) == (trainer is plain)
            trainer.fit()
        assert trainer.task.rows["train"] is rows
    assert counts[0][0] <= batches(reused) + 4  # the rest tells that it may be
    assert counts[1][0] >= 12 + 2
    assert counts[0][4] > 12
    histories = [read_history(tmp_path / name / "history.jsonl") for name in ("reused", "plain")]
    for ours, theirs in zip(*histories, strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), rel=1e-4)
        assert ours.get("valid", {}) == pytest.approx(theirs.get("valid", {}), rel=1e-3)
    for (name, value), other in zip(reused.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=2e-4), name
    ours_BC, theirs_BC = (some.task.logits(some.model.eval(), first(some)) for some in (reused, plain))
    assert torch.allclose(ours_BC, theirs_BC, atol=1e-2)  # the frozen layers compute again
    assert not list(tmp_path.rglob("hidden-*"))


def first(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.task.collate(trainer.task.rows["valid"].__getitems__([RowKey(0, row) for row in range(5)]))


def test_two_processes_and_a_resumed_run_go_on_as_one(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=160)
    # A cache that has the model, and nothing that an earlier run of this test kept.
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pypi").symlink_to(cache_folder("pypi"))
    settings = [*SETTINGS[1:], "train.precision=fp32", "train.threads=1", "data.max_tokens=32", "train.seed=10"]
    settings += ["objective.baselines=false", "train.save_every_updates=5", "train.keep_checkpoints=9"]
    settings += ["model.dropout=0"]  # a short update is cut otherwise among two processes, and dropout with it
    flags = [flag for setting in settings for flag in ("--set", setting)]

    def run(name: str, keep: bool, world: int = 1, more: tuple[str, ...] = ("--output",)) -> Path:
        words = ["run", "bert_cls", "--adapter", "layers", "--data", str(reviews), *flags]
        words += ["--set", f"train.keep_outputs={str(keep).lower()}", *more, str(tmp_path / name)]
        around = environment(PYTHONPATH=str(ROOT), FINETUNE_CACHE=str(tmp_path / "cache"))
        for done in forks().start(words, ROOT, around, world=world).wait_all():
            assert done.returncode == 0, done.stderr
        return tmp_path / name

    # Both compute hidden states; those of the two are kept, and read when the one goes on.
    two, one = run("two", True, 2), run("one", False)
    assert record_of(two)["read_from_cache"] == record_of(one)["read_from_cache"] == []
    losses = [[line["loss"] for line in read_history(some / "history.jsonl") if "loss" in line] for some in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    # Go on from update 5 as if the rest had never been.
    before = (one / "history.jsonl").read_bytes()
    weights = (one / "model" / "model.safetensors").read_bytes()
    record = json.loads((one / "run.json").read_text())
    (one / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    for path in (one / "checkpoints").iterdir():
        if path.name.rpartition("_")[2].lstrip("0") != "5":
            shutil.rmtree(path)
    run("one", True, more=("--resume",))
    assert record_of(one)["status"] == "completed"
    assert record_of(one)["read_from_cache"] == ["hidden states of train", "hidden states of valid"]
    assert (one / "history.jsonl").read_bytes() == before
    assert (one / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["train.length_buckets=false"], "without padding"),
        (["adapter.freeze_below=0", "adapter.lr_decay=0.9"], ""),
        (["train.max_updates=4"], ""),
        (["adapter.reuse_features=false"], ""),
    ],
)
def test_where_nothing_can_be_reused_the_layers_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], why: str
) -> None:
    trainer = make_trainer(tmp_path, *SETTINGS, *overrides)
    rows = trainer.task.rows
    assert not reuses_layers(trainer)
    with reused_layers(trainer):
        assert trainer.task.rows is rows
    said = capsys.readouterr().out
    assert why in said
    assert ("note: the frozen layers run in every epoch" in said) == bool(why)


def test_dropout_below_the_line_keeps_them_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, *SETTINGS)
    layer, model = trainer.model.bert.encoder.layer[1], trainer.model
    own = layer.forward
    layer.forward = lambda *some, **named: torch.nn.functional.dropout(own(*some, **named), 0.1, model.training)
    with reused_layers(trainer):
        pass
    assert "drops something out below" in capsys.readouterr().out


def test_a_full_disk_keeps_them_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, *SETTINGS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
    with reused_layers(trainer):
        pass
    assert "of free disk" in capsys.readouterr().out


def test_plan_says_that_they_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=80)
    settings = ["adapter=layers", "adapter.freeze_below=4", "objective.baselines=false", "data.max_tokens=16"]
    assert print_plan(RunOptions("bert_cls", settings, str(reviews))) == 0
    said = capsys.readouterr().out
    assert "layers      frozen ones run once over the rows" in said
    assert "adapter.reuse_features" in said
