"""Bootstrap intervals over rows, for any statistic that can be computed from resampled row indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

RESAMPLES = 2000
LEVEL = 0.95
# Row indices held at once: 8 MB, which the processor's cache and a laptop's memory both bear.
CHUNK_CELLS = 1 << 20


class Interval(NamedTuple):
    """A measured value, its 95 % interval, and the number of rows it was measured on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """What run.json holds: {"value", "low", "high", "n"}."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def bootstrap(
    statistics: Callable[[Ints], Mapping[str, Floats]], rows: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Floats]:
    """Statistics of `resamples` samples of `rows` row indices, drawn with replacement.

    Args:
        statistics: gets row indices [some resamples, rows], returns one array [the same resamples] a name. A new kind
            of task brings one of its own: Pearson of x[rows_of] and y[rows_of], for example.
        rows: rows of the data; at least 1.
        seed: the same seed, rows and statistics give the same samples to the bit.

    Returns:
        name -> [resamples]. All statistics see the same resamples, so that their differences are paired.
    """
    if rows < 1:
        raise ValueError("a bootstrap needs at least one row")
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // rows)
    parts = [
        statistics(generator.integers(0, rows, size=(min(chunk, resamples - start), rows)))
        for start in range(0, resamples, chunk)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(samples: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of bootstrap samples [resamples]."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def basic_interval(value: float, samples: Floats) -> tuple[float, float]:
    """The percentile interval mirrored at the value, which undoes a bias that the bootstrap repeats.

    The calibration error needs it: noise makes every gap larger, in the data and once more in each resample.
    Never below 0, and widened to hold the value itself.
    """
    low, high = percentile_interval(samples)
    return max(0.0, min(2 * value - high, value)), max(2 * value - low, value)


def exact_share_interval(right: int, rows: int) -> tuple[float, float]:
    """Clopper-Pearson interval of a share; for 0 or all rows, where every resample is the same and says nothing."""
    interval = scipy.stats.binomtest(right, rows).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)
