"""What a model of text pairs must beat: the mean label, TF-IDF of both texts, and the cosine of frozen vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.preprocessing import normalize

from finetune.evaluation.baselines import TFIDF_C, Baseline, fit_logreg, has_no_spaces, tfidf_vectorizer
from finetune.evaluation.intervals import Floats

Pairs = tuple[list[str], list[str]]
RIDGE_ALPHA = 1.0


def mean_label(train_labels: npt.ArrayLike, eval_rows: int) -> Baseline:
    """Answer every row with the mean of the training labels: the best constant for the squared error."""
    return Baseline(
        "mean label", np.tile(np.mean(np.asarray(train_labels, dtype=np.float64), keepdims=True), (eval_rows, 1))
    )


def tfidf_ridge(train: Pairs, train_labels: npt.ArrayLike, evaluated: Pairs) -> Baseline:
    """Ridge regression on TF-IDF features of both texts (see `tfidf_features`)."""
    features, eval_features, note = tfidf_features(train, evaluated, classes=1)
    model = Ridge(alpha=RIDGE_ALPHA).fit(features, np.asarray(train_labels, dtype=np.float64))
    return Baseline("TF-IDF + ridge regression", np.asarray(model.predict(eval_features))[:, None], note)


def tfidf_pair_logreg(train: Pairs, train_labels: npt.ArrayLike, evaluated: Pairs, *, classes: int) -> Baseline:
    """Logistic regression on TF-IDF features of both texts (see `tfidf_features`)."""
    features, eval_features, note = tfidf_features(train, evaluated, classes)
    labels = np.asarray(train_labels, dtype=np.int64)
    probabilities, fit_note = fit_logreg(features, labels, eval_features, classes, c=TFIDF_C)
    return Baseline("TF-IDF + logistic regression", probabilities, "; ".join(filter(None, [note, fit_note])))


def tfidf_features(train: Pairs, evaluated: Pairs, classes: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix, str]:
    """TF-IDF of both texts, their products by word, and the cosine: [rows, 3 x words + 1] for train and evaluated.

    One vocabulary for both texts. The cosine is what says how alike two texts are; no sum of single words can.
    """
    unspaced = has_no_spaces(train[0])
    vectorizer = tfidf_vectorizer(unspaced, False, 3 * classes, len(train[0]))
    try:
        vectorizer.fit([*train[0], *train[1]])
    except ValueError:
        # No word that rows share: single characters always exist.
        unspaced, vectorizer = True, tfidf_vectorizer(True, False, 3 * classes, 1)
        vectorizer.fit([*train[0], *train[1]])

    def features(pairs: Pairs) -> sparse.csr_matrix:
        a, b = (vectorizer.transform(texts) for texts in pairs)
        product = a.multiply(b)
        return sparse.hstack([a, b, product, sparse.csr_matrix(product.sum(axis=1))]).tocsr()

    note = "character n-grams, because the texts have no spaces between words" if unspaced else ""
    return features(train), features(evaluated), note


def scaled_cosine(
    train: tuple[Floats, Floats], train_labels: npt.ArrayLike, evaluated: tuple[Floats, Floats]
) -> Baseline:
    """The cosine of the frozen encoder's vectors of both texts, brought to the labels' scale by a line.

    Args:
        train, evaluated: vectors of the first and of the second texts, [rows, width] each.
    """
    cosine, eval_cosine = (np.sum(normalize(u) * normalize(v), axis=1) for u, v in (train, evaluated))
    slope, shift = np.polyfit(cosine, np.asarray(train_labels, dtype=np.float64), 1)
    return Baseline("frozen-encoder cosine", (slope * eval_cosine + shift)[:, None])
