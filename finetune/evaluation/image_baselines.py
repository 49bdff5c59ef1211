"""What an image classifier must beat without any pretraining: a support vector machine on the pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.images import ImageRows
from finetune.evaluation.baselines import Baseline, sample_rows
from finetune.evaluation.intervals import Floats, Ints

MOST_ROWS = 2_000  # an SVM's time grows with their square
SIDE = 16  # pixels of the thumbnails that it sees


def pixel_svm(train: ImageRows, labels: Ints, evaluated: ImageRows, *, classes: int, seed: int) -> Baseline:
    """Support vector machine (RBF kernel, scikit-learn's defaults) on thumbnails of 16 x 16 pixels.

    Its outputs are votes of pairs of classes as a softmax: their order is the machine's, their size means little.

    Args:
        labels: [train rows] class indices.
        classes: width of the result; a class that labels lacks gets next to no probability.
    """
    from sklearn.svm import SVC

    chosen, note = sample_rows(len(train), seed)
    if len(chosen) > MOST_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST_ROWS, replace=False))
        note = f"trained on a seeded sample of {MOST_ROWS:,} of {len(train):,} rows"
    outputs = np.zeros((len(evaluated), classes))
    present = np.unique(labels[chosen])
    if len(present) == 1:
        outputs[:, present] = 1.0
        return Baseline("pixel SVM", outputs, "only one class in the training rows")
    machine = SVC(decision_function_shape="ovr").fit(_thumbnails(train, chosen), labels[chosen])
    scores = machine.decision_function(_thumbnails(evaluated, np.arange(len(evaluated))))
    if len(present) == 2:
        scores = np.stack([-scores, scores], axis=1)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    outputs[:, present] = powers / powers.sum(axis=1, keepdims=True)
    return Baseline("pixel SVM", outputs, note)


def _thumbnails(rows: ImageRows, chosen: Ints) -> Floats:
    """Centre squares at 16 x 16 pixels, [rows, 768] from 0 to 1."""
    from finetune.data.batching import RowKey

    parts = []
    for start in range(0, len(chosen), 256):
        some = rows.__getitems__([RowKey(0, int(index)) for index in chosen[start : start + 256]])
        pixels_B3HW = torch.stack([row["pixels"] for row in some]).float() / 255.0
        parts.append(F.interpolate(pixels_B3HW, size=(SIDE, SIDE), mode="area").flatten(1).numpy())
    return np.concatenate(parts).astype(np.float64)
