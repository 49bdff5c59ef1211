"""How far probabilities can be trusted: temperature scaling, proper scores, and risk against coverage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from finetune.evaluation.intervals import (
    Floats,
    Interval,
    Ints,
    basic_interval,
    bootstrap,
    percentile_interval,
)
from finetune.evaluation.metrics import CALIBRATION_BINS, calibration_gaps

# A fit that ends here found no temperature: nearly all validation rows are right, or answers say nothing.
COLDEST, HOTTEST = 0.05, 20.0
TITLES = {"log_loss": "log loss (nats)", "brier": "Brier score", "ece": "calibration error"}


class Change(NamedTuple):
    """A score before and after scaling, and the paired difference, over the same resamples of rows."""

    before: Interval
    after: Interval
    change: Interval


def scaled(probabilities_RC: npt.ArrayLike, temperature: float) -> Floats:
    """The probabilities that logits divided by the temperature give, [rows, classes].

    Log probabilities are logits but for a constant a row, so none but the probabilities are needed.
    """
    probabilities = np.asarray(probabilities_RC, dtype=np.float64)
    # A probability of 0 is one that fp32 could not hold.
    logits = np.log(probabilities.clip(min=float(np.finfo(np.float32).tiny))) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def fit_temperature(probabilities_RC: npt.ArrayLike, labels_R: npt.ArrayLike) -> float:
    """The temperature of the least log loss on these rows (Guo et al. 2017, arXiv:1706.04599), from 0.05 to 20.

    Args:
        probabilities_RC: of validation rows; those of test rows would make the scores on them worthless.
    """
    labels = np.asarray(labels_R)

    def loss(log_temperature: float) -> float:
        return float(log_losses(scaled(probabilities_RC, np.exp(log_temperature)), labels).mean())

    # One dip: the loss is convex in 1 / temperature, which falls steadily with its logarithm.
    bounds = (np.log(COLDEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x))


def log_losses(probabilities_RC: Floats, labels_R: npt.NDArray[np.int64]) -> Floats:
    """Minus the log of each true class's probability, [rows], in nats."""
    true = np.asarray(probabilities_RC, dtype=np.float64)[np.arange(len(labels_R)), labels_R]
    losses: Floats = -np.log(true.clip(min=float(np.finfo(np.float32).tiny)))
    return losses


def brier_scores(probabilities_RC: Floats, labels_R: npt.NDArray[np.int64]) -> Floats:
    """Squared distance of each row's probabilities from its true class, [rows], from 0 to 2 (Brier 1950)."""
    true_RC = np.eye(probabilities_RC.shape[1])[labels_R]
    found: Floats = np.square(probabilities_RC - true_RC).sum(axis=1)
    return found


def calibration_changes(before_RC: Floats, after_RC: Floats, labels_R: Ints, seed: int) -> dict[str, Change]:
    """log_loss, brier and ece of two sets of probabilities on the same rows, with 95 % bootstrap intervals.

    The calibration error is over 15 equal-width bins of confidence, and its intervals are mirrored at the value (see
    `basic_interval`).
    """
    both = {"before": before_RC, "after": after_RC}
    means = {
        (name, when): of_rows(some, labels_R)
        for name, of_rows in (("log_loss", log_losses), ("brier", brier_scores))
        for when, some in both.items()
    }
    gaps = {when: calibration_gaps(some, some.argmax(axis=1) == labels_R) for when, some in both.items()}

    def scores(rows_of: Ints) -> dict[str, Floats]:
        found = {f"{name} {when}": values[rows_of].mean(axis=1) for (name, when), values in means.items()}
        found |= {f"ece {when}": _errors(*gaps[when], rows_of) for when in both}
        return found | {f"{name} change": found[f"{name} after"] - found[f"{name} before"] for name in TITLES}

    rows = len(labels_R)
    values = {name: float(some[0]) for name, some in scores(np.arange(rows)[None, :]).items()}
    samples = bootstrap(scores, rows, seed)

    def interval(name: str) -> Interval:
        if not name.startswith("ece"):
            return Interval(values[name], *percentile_interval(samples[name]), rows)
        if name != "ece change":
            return Interval(values[name], *basic_interval(values[name], samples[name]), rows)
        low, high = percentile_interval(samples[name])
        return Interval(values[name], 2 * values[name] - high, 2 * values[name] - low, rows)

    return {name: Change(*(interval(f"{name} {part}") for part in Change._fields)) for name in TITLES}


def _errors(bin_of_row: Ints, gap_of_row: Floats, rows_of: Ints) -> Floats:
    samples, rows = rows_of.shape
    cells = (bin_of_row[rows_of] + CALIBRATION_BINS * np.arange(samples)[:, None]).ravel()
    gaps = np.bincount(cells, gap_of_row[rows_of].ravel(), minlength=samples * CALIBRATION_BINS)
    found: Floats = np.abs(gaps.reshape(samples, CALIBRATION_BINS)).sum(axis=1) / rows
    return found


def reliability(probabilities_RC: Floats, labels_R: Ints) -> list[tuple[float, float, int]]:
    """(mean confidence, share that is right, rows) of each of the 15 bins that holds a row."""
    bins, gaps = calibration_gaps(probabilities_RC, probabilities_RC.argmax(axis=1) == labels_R)
    confidence = probabilities_RC.max(axis=1)
    found = []
    for index in np.unique(bins):
        inside = bins == index
        mean = float(confidence[inside].mean())
        found.append((mean, mean + float(gaps[inside].mean()), int(inside.sum())))
    return found


def risk_coverage(confidence_R: Floats, losses_R: Floats) -> Floats:
    """The mean loss of the k surest rows, for k = 1 to all, [rows]; rows of equal confidence share theirs."""
    _, group_R = np.unique(-confidence_R, return_inverse=True)
    shared_R = np.bincount(group_R, losses_R)[group_R] / np.bincount(group_R)[group_R]
    found: Floats = np.cumsum(shared_R[np.argsort(group_R, kind="stable")]) / np.arange(1, len(losses_R) + 1)
    return found


def aurc(confidence_R: Floats, losses_R: Floats, seed: int) -> Interval:
    """The area under the risk-coverage curve (Geifman and El-Yaniv 2017, arXiv:1705.08500), with a 95 % interval.

    The mean of `risk_coverage`: the loss to expect when the share of rows that is answered is drawn at random.
    """
    _, group_R = np.unique(-confidence_R, return_inverse=True)
    groups, rows = int(group_R.max()) + 1, len(losses_R)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, rows + 1))])

    def areas(rows_of: Ints) -> dict[str, Floats]:
        cells = (group_R[rows_of] + groups * np.arange(len(rows_of))[:, None]).ravel()
        size_SG = np.bincount(cells, minlength=len(rows_of) * groups).reshape(-1, groups)
        sum_SG = np.bincount(cells, losses_R[rows_of].ravel(), minlength=len(rows_of) * groups).reshape(-1, groups)
        mean_SG = np.divide(sum_SG, size_SG, out=np.zeros_like(sum_SG), where=size_SG > 0)
        n_SG, loss_SG = size_SG.cumsum(axis=1), sum_SG.cumsum(axis=1)
        n0_SG, loss0_SG = n_SG - size_SG, loss_SG - sum_SG
        # Of m rows that share a mean after n0 rows: the sum over j of (loss0 + j mean) / (n0 + j), in closed form.
        area_SG = sum_SG + (loss0_SG - n0_SG * mean_SG) * (harmonic[n_SG] - harmonic[n0_SG])
        return {"aurc": area_SG.sum(axis=1) / rows}

    value = float(areas(np.arange(rows)[None, :])["aurc"][0])
    return Interval(value, *percentile_interval(bootstrap(areas, rows, seed)["aurc"]), rows)
