"""Calibration against scikit-learn, PyTorch's own optimiser and loops by hand, on a real classifier's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from finetune.evaluation.calibration import (
    aurc,
    brier_scores,
    calibration_changes,
    fit_temperature,
    log_losses,
    reliability,
    risk_coverage,
    scaled,
)

pytestmark = pytest.mark.equivalence


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities and labels of validation and test rows, of a digit classifier that is too sure."""
    x, y = load_digits(return_X_y=True)
    noisy = x + np.random.default_rng(0).normal(0, 6, x.shape)
    model = LogisticRegression(C=10, max_iter=300).fit(noisy[:500], y[:500])
    return model.predict_proba(noisy[500:900]), y[500:900], model.predict_proba(noisy[900:]), y[900:]


def test_log_loss_and_brier_score_equal_scikit_learns(answers) -> None:
    _, _, p, y = answers
    assert log_losses(p, y).mean() == pytest.approx(log_loss(y, p), rel=1e-12)
    assert brier_scores(p, y).mean() == pytest.approx(brier_score_loss(y, p, scale_by_half=False), rel=1e-12)


def test_the_temperature_is_the_one_that_lbfgs_finds(answers) -> None:
    p, y, _, _ = answers
    logits, labels = torch.tensor(np.log(p.clip(1e-38))), torch.tensor(y)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fit_temperature(p, y)
    assert found == pytest.approx(float(log_t.exp().detach()), rel=1e-5)
    assert found > 1.2  # it was too sure
    assert np.allclose(scaled(p, found), (logits / found).softmax(-1).numpy(), atol=1e-12)
    assert np.allclose(scaled(p, 1.0), p, atol=1e-12)


def test_changes_hold_before_and_after_and_scaling_helps(answers) -> None:
    p_valid, y_valid, p, y = answers
    after = scaled(p, fit_temperature(p_valid, y_valid))
    assert (after.argmax(1) == p.argmax(1)).all()
    changes = calibration_changes(p, after, y, seed=0)
    for name, of_rows in (("log_loss", log_losses), ("brier", brier_scores)):
        before, scaled_to, change = changes[name]
        assert before.value == pytest.approx(of_rows(p, y).mean())
        assert scaled_to.value == pytest.approx(of_rows(after, y).mean())
        assert change.value == pytest.approx(scaled_to.value - before.value)
        assert change.high < 0  # better, and by more than chance
        # The bootstrap of a mean is near its normal interval.
        gaps = of_rows(after, y) - of_rows(p, y)
        assert change.high - change.low == pytest.approx(2 * 1.96 * gaps.std() / len(gaps) ** 0.5, rel=0.1)


def test_calibration_error_and_reliability_by_hand(answers) -> None:
    _, _, p, y = answers
    confidence, right = p.max(1), p.argmax(1) == y
    error, bins = 0.0, []
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            bins.append((confidence[inside].mean(), right[inside].mean(), int(inside.sum())))
    assert calibration_changes(p, p, y, seed=0)["ece"].before.value == pytest.approx(error)
    assert np.allclose(reliability(p, y), bins)


def test_risk_coverage_by_hand(answers) -> None:
    _, _, p, y = answers
    confidence, wrong = p.max(1), (p.argmax(1) != y).astype(float)
    order = np.argsort(-confidence, kind="stable")
    by_hand = [wrong[order[: k + 1]].mean() for k in range(len(wrong))]
    assert len(set(confidence)) == len(confidence)  # no ties: one order
    assert np.allclose(risk_coverage(confidence, wrong), by_hand)
    found = aurc(confidence, wrong, seed=0)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.low < found.value < found.high
    assert found.high < wrong.mean()


def test_rows_of_equal_confidence_share_their_risk_over_all_orders() -> None:
    confidence, wrong = np.array([0.9, 0.5, 0.5, 0.5, 0.2]), np.array([0.0, 1.0, 0.0, 0.0, 1.0])
    generator, curves = np.random.default_rng(0), []
    for _ in range(4000):
        shuffled = generator.permutation(5)
        order = shuffled[np.argsort(-confidence[shuffled], kind="stable")]
        curves.append(np.cumsum(wrong[order]) / np.arange(1, 6))
    assert np.allclose(risk_coverage(confidence, wrong), np.mean(curves, axis=0), atol=0.02)
    assert aurc(confidence, wrong, seed=0).value == pytest.approx(risk_coverage(confidence, wrong).mean())
