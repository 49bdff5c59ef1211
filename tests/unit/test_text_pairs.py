"""Pairs: what regression ignores is refused, the positive label must be one, and the baselines see both texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.data.tokens import TokenRows
from finetune.errors import ConfigError
from finetune.evaluation.pair_baselines import mean_label, scaled_cosine, tfidf_pair_logreg, tfidf_ridge
from finetune.text_pairs import PairHead, refuse_ignored
from finetune.text_settings import PairObjective

pytestmark = pytest.mark.unit


def head(objective: PairObjective, labels: tuple[str, ...]) -> PairHead:
    rows = TokenRows({}, np.arange(5), np.zeros(4, bool), np.array([0, 1, 1, 1] if labels else [0.5, 2.0, 1.0, 4.0]))
    return PairHead(objective, labels, {"train": rows, "test": rows}, seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_smoothing", 0.1), ("class_weights", "balanced"), ("best_metric", "mcc"), ("positive", "1")],
)
def test_what_regression_ignores_is_refused(name: str, value: object) -> None:
    refuse_ignored(PairObjective(**{name: value}))
    with pytest.raises(ConfigError, match=rf"objective.{name}={value} is ignored by objective.kind=regression"):
        refuse_ignored(PairObjective(kind="regression", **{name: value}))


def test_the_positive_label_has_an_f1_of_its_own() -> None:
    from sklearn.metrics import f1_score

    judge = head(PairObjective(positive="no"), ("no", "yes")).judge
    outputs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7]])
    f1 = judge.judge("test", outputs)["metrics"]["f1"]
    assert f1["value"] == pytest.approx(f1_score([0, 1, 1, 1], [0, 0, 1, 1], pos_label=0))
    assert f1["low"] <= f1["value"] <= f1["high"]
    assert judge.quick("test", outputs)["f1"] == f1["value"]
    with pytest.raises(ConfigError, match=r"objective.positive=maybe is no label"):
        head(PairObjective(positive="maybe"), ("no", "yes"))


def test_losses_are_torchs_own() -> None:
    logits, labels = torch.randn(4, 1), torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    scorer = head(PairObjective(kind="regression"), ())
    mean = scorer.loss_sum(logits, labels) / scorer.count({"labels": labels})
    assert float(mean) == pytest.approx(float(torch.nn.MSELoss()(logits[:, 0], labels.float())), rel=1e-6)
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 1])
    classifier = head(PairObjective(class_weights="balanced"), ("no", "yes"))
    mean = classifier.loss_sum(logits, labels) / classifier.count({"labels": labels})
    weighted = torch.nn.CrossEntropyLoss(torch.tensor([2.0, 2 / 3]))
    assert float(mean) == pytest.approx(float(weighted(logits, labels)), rel=1e-6)


def pairs(rows: int, seed: int) -> tuple[tuple[list[str], list[str]], np.ndarray]:
    """Pairs that share words or don't: neither text alone says which."""
    generator = np.random.default_rng(seed)
    words = np.array([f"word{number}" for number in range(40)])
    labels = generator.integers(0, 2, rows)
    first = [generator.permutation(words)[:6] for _ in range(rows)]
    second = [
        text if same else generator.permutation(np.setdiff1d(words, text))[:6]
        for text, same in zip(first, labels, strict=True)
    ]
    return ([" ".join(text) for text in first], [" ".join(text) for text in second]), labels


def test_text_baselines_see_how_alike_the_texts_are() -> None:
    (train, labels), (test, expected) = pairs(300, 0), pairs(100, 1)
    classified = tfidf_pair_logreg(train, labels, test, classes=2).outputs
    assert (classified.argmax(1) == expected).mean() > 0.95
    scored = tfidf_ridge(train, labels.astype(float), test).outputs[:, 0]
    assert np.corrcoef(scored, expected)[0, 1] > 0.9


def test_the_cosine_is_brought_to_the_labels_scale() -> None:
    u, v = (np.random.default_rng(seed).normal(size=(50, 4)) for seed in (0, 1))
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    assert scaled_cosine((u, v), 3 * cosine + 2, (u, v)).outputs[:, 0] == pytest.approx(3 * cosine + 2)
    assert mean_label([1.0, 4.0], 3).outputs.tolist() == [[2.5]] * 3
