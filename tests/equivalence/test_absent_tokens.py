"""Training without the embeddings of tokens that never occur, against training with all: MiniLM's own weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.absent_tokens import OccurringRows, skips_absent_tokens, without_absent_tokens
from finetune.errors import TrainingError
from finetune.history import read_history
from finetune.trainer import Trainer
from tests.trainers import make_trainer

pytestmark = pytest.mark.equivalence
EMBEDDING = "bert.embeddings.word_embeddings.weight"
# A rate that moves weights far, a decay that shows after a few updates, and one evaluation on the way.
SETTINGS = ("train.max_updates=12", "train.lr=1e-3", "train.weight_decay=0.5", "train.eval_every_updates=6")


def trained(folder: Path, *overrides: str, wanted: bool = True) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The best weights of a whole training, and its history."""
    trainer = make_trainer(folder, *SETTINGS, f"train.skip_absent_tokens={str(wanted).lower()}", *overrides)
    embedding = trainer.model.get_input_embeddings()
    with without_absent_tokens(trainer):
        assert isinstance(trainer.model.get_input_embeddings(), OccurringRows) == wanted
        trainer.fit()
    assert trainer.model.get_input_embeddings() is embedding
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return weights, read_history(folder / "history.jsonl")


def occurring(trainer: Trainer) -> np.ndarray:
    rows: Any = trainer.task.rows["train"]
    return np.unique(rows.columns["input_ids"])


@pytest.mark.parametrize(("optimizer", "clip"), [("adamw", "none"), ("adamw", "1.0"), ("sgd", "none")])
def test_a_training_ends_with_the_weights_of_one_of_all_rows(tmp_path: Path, optimizer: str, clip: str) -> None:
    settings = (f"train.optimizer={optimizer}", f"train.clip_grad_norm={clip}", "train.lr_warmup_updates=2")
    ids = occurring(start := make_trainer(tmp_path / "start"))
    before = start.model.state_dict()
    found, history = trained(tmp_path / "some", *settings)
    expected, whole = trained(tmp_path / "all", *settings, wanted=False)
    assert found.keys() == expected.keys()
    absent_V = np.ones(len(found[EMBEDDING]), dtype=bool)
    absent_V[ids] = False
    assert absent_V.mean() > 0.9
    # They decayed, and by what they would have.
    assert not torch.allclose(found[EMBEDDING][absent_V], before[EMBEDDING][absent_V], rtol=1e-4)
    assert torch.allclose(found[EMBEDDING][absent_V], expected[EMBEDDING][absent_V], rtol=1e-5, atol=0)
    for name, value in expected.items():
        some, other = (found[name], value) if name != EMBEDDING else (found[name][ids], value[ids])
        if clip == "none":
            assert torch.equal(some, other), name
        else:  # the norm of all gradients is summed in another order
            assert torch.allclose(some, other, rtol=1e-4, atol=1e-5), name
    for line, other_line in zip(history, whole, strict=True):
        assert line.keys() == other_line.keys()
        assert line.get("loss", 0.0) == pytest.approx(other_line.get("loss", 0.0), rel=1e-5)
        # Validation rows hold tokens that no training row has.
        assert line.get("valid", {}) == pytest.approx(other_line.get("valid", {}), rel=1e-5)


def test_what_is_evaluated_on_the_way_has_the_embeddings_of_all_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "train.weight_decay=0.5")
    embedding = trainer.model.get_input_embeddings()
    start_VD = embedding.weight.detach().clone()
    with without_absent_tokens(trainer):
        rows: Any = trainer.model.get_input_embeddings()
        with torch.no_grad():
            assert torch.equal(rows(torch.arange(len(start_VD))), start_VD)
            rows.weight.add_(1.0)
            rows.decay.mul_(0.5)
            ids = torch.tensor([[0, 101, 30000], [102, 30001, 0]])
            found_BTD = rows(ids)
    kept = torch.zeros(len(start_VD), dtype=torch.bool)
    kept[[0, *occurring(trainer)]] = True
    assert kept[ids].tolist() == [[True, True, False], [True, False, True]]
    expected_VD = torch.where(kept[:, None], start_VD + 1.0, start_VD * 0.5)
    assert torch.equal(found_BTD, expected_VD[ids])
    assert torch.equal(embedding.weight, expected_VD)  # and so has whoever takes the model afterwards


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = (*SETTINGS, "train.save_every_updates=4")
    whole = make_trainer(tmp_path / "whole", *settings)
    whole.checkpoints.keep = 9
    with without_absent_tokens(whole):
        whole.fit()
    resumed = make_trainer(tmp_path / "resumed", *settings)
    shutil.copytree(whole.checkpoints.path(4), resumed.checkpoints.path(4))
    shutil.copy(tmp_path / "whole" / "history.jsonl", tmp_path / "resumed")
    with without_absent_tokens(resumed):
        before, after = resumed.fit(resume=True)
    assert (before.update, after.update) == (4, 12)
    for (name, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    histories = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("whole", "resumed")]
    assert histories[0] == histories[1]


def test_a_token_that_a_batch_was_given_by_somebody_else_is_no_silent_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *SETTINGS)
    collate = trainer.task.collate

    def masks(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        batch["input_ids"][0, 1] = 103  # [MASK]
        return batch

    trainer.task.collate = masks
    with (
        without_absent_tokens(trainer),
        pytest.raises(TrainingError, match=r"token 103, which is in no.*\n.*skip_absent_tokens=false"),
    ):
        trainer.fit()


@pytest.mark.parametrize(
    "overrides",
    [["adapter=lora"], ["adapter=frozen"], ["adapter=bitfit"], ["adapter=layers", "adapter.freeze_below=2"],
     ["train.skip_absent_tokens=false"]],
)  # fmt: skip
def test_an_embedding_that_stays_as_it_is_is_left_alone(tmp_path: Path, overrides: list[str]) -> None:
    trainer = make_trainer(tmp_path, *overrides)
    assert not skips_absent_tokens(trainer)
    with without_absent_tokens(trainer):
        assert type(trainer.model.get_input_embeddings()) is torch.nn.Embedding


def test_an_embedding_that_a_head_shares_is_left_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert skips_absent_tokens(trainer)
    trainer.model.head = torch.nn.Linear(384, 30522, bias=False)
    trainer.model.head.weight = trainer.model.get_input_embeddings().weight
    assert not skips_absent_tokens(trainer)


def test_an_embedding_that_is_trained_later_and_more_slowly_is_so_still(tmp_path: Path) -> None:
    settings = ("adapter=layers", "adapter.lr_decay=0.5", "adapter.unfreeze_every_updates=1")
    settings += ("train.clip_grad_norm=none", "train.lr_warmup_updates=0")
    found, expected = (trained(tmp_path / str(wanted), *settings, wanted=wanted)[0] for wanted in (True, False))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=0), name


def test_so_are_those_of_texts_in_pairs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "data.max_tokens=16", recipe="few_shot_cls")
    assert skips_absent_tokens(trainer)
    with without_absent_tokens(trainer):
        rows: Any = trainer.model.get_input_embeddings()
        assert len(rows.weight) < 300  # of 16 texts, and padding
