"""How well masked tokens are predicted: loss, perplexity and accuracy with intervals over documents, paired gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from finetune.data.masking import MaskedBlocks
from finetune.evaluation.intervals import Floats, Interval, Ints, bootstrap, percentile_interval
from finetune.evaluation.paired import Gain


class MaskedSums(NamedTuple):
    """Of each document: summed cross-entropy in nats, right predictions, and masked tokens; [documents] each."""

    loss: Floats
    right: Floats
    tokens: Floats


class MaskedJudge:
    """Judges sums of each block, [rows, 3] (loss, right predictions, masked tokens), by split.

    The perplexity is that of the masked tokens given all others (the exponential of the mean loss), under masks that
    are the same before and after training. It is no language model's perplexity, and not the pseudo-perplexity of
    Salazar et al. (arXiv:1910.14659), which masks one token at a time and costs a pass for each.

    Args:
        blocks: the rows that were judged, by split.
        seed: of the bootstrap intervals.
    """

    best_metric = "log_likelihood"

    def __init__(self, blocks: Mapping[str, MaskedBlocks], seed: int) -> None:
        self.blocks, self.seed = blocks, seed

    def documents(self, split: str, outputs: npt.ArrayLike) -> MaskedSums:
        """Sums of each document that has a block."""
        _, place = np.unique(self.blocks[split].document, return_inverse=True)
        columns = np.asarray(outputs, dtype=np.float64).T
        return MaskedSums(*(np.bincount(place, column).astype(np.float64) for column in columns))

    def quick(self, split: str, outputs: npt.ArrayLike) -> dict[str, float]:
        """Values for evaluations in the middle of a run; `log_likelihood` is the loss with its sign turned."""
        sums = self.documents(split, outputs)
        values = {name: float(value[0]) for name, value in _scores(sums, _each(sums)).items()}
        return {**values, "log_likelihood": -values["masked_loss"]}

    def judge(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """What run.json holds of a split: `metrics` with 95 % intervals over documents."""
        sums = self.documents(split, outputs)
        values = _scores(sums, _each(sums))
        samples = bootstrap(lambda rows_of: _scores(sums, rows_of), len(sums.loss), self.seed)
        found = {
            name: Interval(float(value[0]), *percentile_interval(samples[name]), len(sums.loss)).as_dict()
            for name, value in values.items()
        }
        return {"metrics": found}

    def gain(self, split: str, outputs: npt.ArrayLike, baseline: npt.ArrayLike) -> dict[str, Any]:
        """By what share the masked perplexity is lower than a baseline's under the same masks."""
        after, before = self.documents(split, outputs), self.documents(split, baseline)
        difference = after.loss - before.loss

        def resampled(rows_of: Ints) -> dict[str, Floats]:
            return {"fell": -np.expm1(difference[rows_of].sum(axis=1) / after.tokens[rows_of].sum(axis=1))}

        value = float(resampled(_each(after))["fell"][0])
        interval = percentile_interval(bootstrap(resampled, len(difference), self.seed)["fell"])
        per_token = difference / after.tokens
        p = float(scipy.stats.wilcoxon(per_token).pvalue) if per_token.any() else 1.0
        gain = Gain("masked_perplexity_reduction", value, *interval, len(difference), p)
        return {**gain.as_dict(), "test": "Wilcoxon"}

    def columns(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """Columns of predictions.parquet besides the document ids."""
        sums = self.documents(split, outputs)
        return {
            "loss_sum": sums.loss,
            "right": sums.right.astype(np.int64),
            "masked_tokens": sums.tokens.astype(np.int64),
        }


def _scores(sums: MaskedSums, rows_of: Ints) -> dict[str, Floats]:
    loss, right, tokens = (part[rows_of].sum(axis=1) for part in sums)
    return {"masked_perplexity": np.exp(loss / tokens), "masked_accuracy": right / tokens, "masked_loss": loss / tokens}


def _each(sums: MaskedSums) -> Ints:
    return np.arange(len(sums.loss))[None, :]
