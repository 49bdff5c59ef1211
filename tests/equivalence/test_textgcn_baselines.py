"""TF-IDF + logistic regression reaches the TextGCN paper's figures: the loader, the splits and the labels are right.

Yao, Mao and Luo 2019, table 2, "TF-IDF + LR". The paper trains on all published training rows, so train and valid are
joined here: the loader carves valid out of train. The paper's vectoriser is unknown; scikit-learn's defaults (single
words, C=1) come within 1.2 points.
"""

import numpy as np
import pytest

from finetune.config import TextClassificationData
from finetune.data.loader import load_data
from finetune.evaluation.baselines import tfidf_logreg

pytestmark = pytest.mark.equivalence


@pytest.mark.parametrize(
    ("card", "classes", "train_rows", "test_rows", "published"),
    [
        ("newsgroups_20", 20, 11_293, 7_528, 83.19),
        ("reuters_r8", 8, 5_485, 2_189, 93.74),
        ("reuters_r52", 52, 6_532, 2_568, 86.95),
    ],
)
def test_unigram_baseline_is_within_1_2_points(
    card: str, classes: int, train_rows: int, test_rows: int, published: float
) -> None:
    data = load_data(TextClassificationData(source=card), {"text": None, "label": None})
    assert len(data.labels) == classes
    parts = [data.splits["train"], data.splits["valid"]]
    texts = [text for part in parts for text in part["text"]]
    labels = np.concatenate([np.asarray(part["label"]) for part in parts])
    test_labels = np.asarray(data.splits["test"]["label"])
    assert (len(texts), len(test_labels)) == (train_rows, test_rows)
    result = tfidf_logreg(texts, labels, list(data.splits["test"]["text"]), classes=classes, seed=0, unigram=True)
    accuracy = 100 * np.mean(result.outputs.argmax(axis=1) == test_labels)
    assert accuracy == pytest.approx(published, abs=1.2)
    assert result.note == ""
