"""Several comparisons at once: Holm's correction, and what may be said of each pair afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.evaluation.intervals import RESAMPLES, Floats, bootstrap, percentile_interval
from finetune.evaluation.paired import mcnemar_p
from finetune.evaluation.stored import LOWER_IS_BETTER, Stored

LEVEL_P = 0.05


class Comparison(NamedTuple):
    """Metric of A minus that of B with its 95 % interval; p alone, and p after Holm over all pairs shown together."""

    a: int
    b: int
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: str


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979, Scand. J. Statist. 6, 65-70).

    The k-th smallest of m is multiplied by m - k + 1, kept at least as large as the one before and at most 1; then
    calling those below 0.05 different is wrong anywhere at most once in twenty tables, whatever the tests share.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values are a list of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted: Floats = np.zeros(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value of bootstrapped differences: twice the share on the other side of 0, never below 2/(B + 1).

    One is added to both counts, because a p-value of 0 can't follow from finitely many samples.
    """
    below, above = (int(np.sum(some)) for some in (differences <= 0, differences >= 0))
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def compare_all(models: Sequence[Sequence[Stored]], metric: str, seed: int) -> list[Comparison]:
    """Every pair of models on the same rows, paired over rows, with Holm's correction over the pairs.

    Args:
        models: one or more seeds each, all with the same rows in the same order (`finetune.evaluation.stored.joined`).
        metric: the mean over a model's seeds is compared. With several seeds both rows and, for each model by itself,
            seeds are resampled, so that the interval covers another seed as well as other rows.
        seed: of the bootstrap.

    Returns:
        Each pair once, first to last. p is McNemar's exact one for the accuracy of single runs, else the bootstrap's.
    """
    rows = len(models[0][0].ids)
    values = [float(np.mean([run.value(metric) for run in runs])) for runs in models]
    # All pairs see the same resamples of rows: one table of [models, resamples] serves them all.
    seeds = [_seed_weights(len(runs), number, seed) for number, runs in enumerate(models)]
    statistics = {f"{m} {s}": run.statistic(metric) for m, runs in enumerate(models) for s, run in enumerate(runs)}
    samples = bootstrap(lambda of: {name: statistic(of) for name, statistic in statistics.items()}, rows, seed)
    drawn = [
        (np.stack([samples[f"{m} {s}"] for s in range(len(runs))], axis=1) * seeds[m]).sum(axis=1)
        for m, runs in enumerate(models)
    ]
    found = []
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            exact = metric == "accuracy" and len(models[a]) == len(models[b]) == 1
            pair = [models[number][0].row_scores() for number in (a, b)]
            p = mcnemar_p(*pair) if exact else bootstrap_p(drawn[a] - drawn[b])
            found.append((a, b, values[a] - values[b], *percentile_interval(drawn[a] - drawn[b]), p))
    adjusted = holm([item[-1] for item in found])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return [
        Comparison(*item, float(p_holm), _verdict(sign * item[2], float(p_holm)))
        for item, p_holm in zip(found, adjusted, strict=True)
    ]


def _seed_weights(count: int, model: int, seed: int) -> Floats:
    """Weights [resamples, seeds] of a model's seeds in each resample, summing to 1; all equal where there is one."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    draws = np.random.default_rng((seed, model, count)).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return draws / count


def _verdict(better_by: float, p_holm: float) -> str:
    if p_holm >= LEVEL_P or better_by == 0:
        return "not distinguishable"
    return "better" if better_by > 0 else "worse"
