"""What a model must beat to have been worth fine-tuning: majority class, TF-IDF + logistic regression, frozen probe."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from finetune.evaluation.intervals import Floats, Ints

MAX_TRAIN_ROWS = 20_000
# The solver keeps some twenty copies of [classes, features] doubles: at most 0.7 GB with these bounds. 20 Newsgroups
# takes half a minute so; with 200,000 features it took two.
MAX_COEFFICIENTS = 4_000_000
MAX_FEATURES = 50_000
MAX_ITERATIONS = 1000
FEW_ROWS = 1000
# Chosen by likelihood on the validation rows of movie_snippets (accuracy is flat around them), among C of 1 to 30,
# words alone or with pairs, rare features kept or not, one-letter words kept or not; for the probe among C of 0.001 to
# 1 and features standardised or of unit length. The test rows had no part in it.
TFIDF_C = 10.0
PROBE_C = 0.01
# Thai and Lao, Burmese, Khmer, kana, and Chinese characters: scripts that put no space between words.
UNSPACED_SCRIPTS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Baseline:
    """A simple model's outputs on the test rows, [rows, K] as the task's own: class probabilities for a classifier.

    The note is what the reader should know of how it was made.
    """

    name: str
    outputs: Floats
    note: str = ""


def majority_class(train_labels: npt.ArrayLike, eval_rows: int, classes: int) -> Baseline:
    """Answer every row with the class shares of the training rows, so the commonest class wins (ties: the first).

    Args:
        train_labels: [train rows] int class indices.

    Raises:
        ValueError: no training rows, or a label out of range.
    """
    labels = _checked_labels(train_labels, classes)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return Baseline("majority class", np.tile(shares, (eval_rows, 1)))


def tfidf_logreg(
    train_texts: Sequence[str],
    train_labels: npt.ArrayLike,
    eval_texts: Sequence[str],
    *,
    classes: int,
    seed: int,
    unigram: bool = False,
) -> Baseline:
    """TF-IDF features and multinomial logistic regression, in seconds on one core.

    Words and word pairs; character n-grams where the texts have no spaces between words. The settings were chosen on
    the validation rows of movie_snippets and are the same for all data, as a baseline's should be.

    Args:
        train_labels: [train rows] int class indices.
        eval_texts: any number of texts; to score two splits, pass them joined, because each call fits anew.
        classes: width of the result; a class that train_labels lacks gets probability 0.
        seed: of the sample that is taken above 20,000 training rows.
        unigram: scikit-learn's plain defaults instead (single words, C=1), as published tables use.

    Raises:
        ValueError: no training rows, as many texts as labels not given, or a label out of range.
    """
    labels = _checked_labels(train_labels, classes)
    if len(train_texts) != len(labels):
        raise ValueError(f"{len(train_texts)} texts have {len(labels)} labels")
    rows, note = sample_rows(len(labels), seed)
    texts, labels = [train_texts[row] for row in rows], labels[rows]
    unspaced = not unigram and has_no_spaces(texts)
    vectorizer = tfidf_vectorizer(unspaced, unigram, classes, len(texts))
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:
        # No word that rows share (only digits, signs or emoji, say): single characters always exist.
        unspaced, vectorizer = True, tfidf_vectorizer(True, False, classes, 1)
        features = vectorizer.fit_transform(texts)
    notes = [note, "character n-grams, because the texts have no spaces between words" if unspaced else ""]
    probabilities, fit_note = fit_logreg(
        features, labels, vectorizer.transform(eval_texts), classes, c=1.0 if unigram else TFIDF_C
    )
    return Baseline("TF-IDF + logistic regression", probabilities, "; ".join(filter(None, [*notes, fit_note])))


def probe(
    train_features: npt.ArrayLike, train_labels: npt.ArrayLike, eval_features: npt.ArrayLike, *, classes: int, seed: int
) -> Baseline:
    """Logistic regression on the features of the pretrained encoder before fine-tuning: what it knew already.

    Args:
        train_features, eval_features: [rows, width] float: the last hidden states, averaged over a text's tokens.
        train_labels: [train rows] int class indices.
        classes: width of the result; a class that train_labels lacks gets probability 0.
        seed: of the sample that is taken above 20,000 training rows.

    Raises:
        ValueError: no training rows, other numbers of features than labels, or a label out of range.
    """
    labels = _checked_labels(train_labels, classes)
    features = np.asarray(train_features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features {features.shape} are not [rows, width] of {len(labels)} labels")
    rows, note = sample_rows(len(labels), seed)
    scaler = StandardScaler().fit(features[rows])
    probabilities, fit_note = fit_logreg(
        scaler.transform(features[rows]),
        labels[rows],
        scaler.transform(np.asarray(eval_features, np.float64)),
        classes,
        c=PROBE_C,
    )
    return Baseline("frozen-encoder probe", probabilities, "; ".join(filter(None, [note, fit_note])))


def sample_rows(rows: int, seed: int) -> tuple[Ints, str]:
    """The training rows that baselines learn from, in ascending order, and a note that says if they are a sample.

    All rows, or a seeded sample of 20,000. Ask before computing a probe's features, to compute only those.
    """
    if rows <= MAX_TRAIN_ROWS:
        return np.arange(rows), ""
    chosen = np.sort(np.random.default_rng(seed).choice(rows, MAX_TRAIN_ROWS, replace=False))
    return chosen, f"trained on a seeded sample of {MAX_TRAIN_ROWS:,} of {rows:,} rows"


def has_no_spaces(texts: Sequence[str]) -> bool:
    """Whether words can't be found by spaces: Chinese, Japanese, Thai and the like, or mostly rows of one word each."""
    words = [text.split() for text in texts[:1000]]
    letters = "".join(word for row in words for word in row)
    if not letters:
        return True
    one_word_rows = sum(len(row) == 1 for row in words) / len(words)
    return one_word_rows > 0.5 or len(UNSPACED_SCRIPTS.findall(letters)) > 0.3 * len(letters)


def tfidf_vectorizer(unspaced: bool, unigram: bool, classes: int, rows: int) -> TfidfVectorizer:
    """What makes the features of texts: words and pairs of them, characters where unspaced, plain words for unigram."""
    if unigram:
        return TfidfVectorizer()
    most = min(MAX_FEATURES, max(1000, MAX_COEFFICIENTS // classes))
    # A feature of a single row helps no other row, but a handful of rows may share none.
    rare = 2 if rows >= FEW_ROWS else 1
    if unspaced:
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=rare, max_features=most)
    return TfidfVectorizer(
        token_pattern=r"\b\w+\b", ngram_range=(1, 2), sublinear_tf=True, min_df=rare, max_features=most
    )


def fit_logreg(
    train: Floats | sparse.csr_matrix, labels: Ints, evaluated: Floats | sparse.csr_matrix, classes: int, *, c: float
) -> tuple[Floats, str]:
    """Probabilities [rows, classes] of a logistic regression, and a note if it was stopped early."""
    present = np.unique(labels)
    probabilities = np.zeros((evaluated.shape[0], classes))
    if len(present) == 1:
        probabilities[:, present] = 1.0
        return probabilities, "only one class in the training rows"
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Said in the note instead.
        model.fit(train, labels)
    probabilities[:, model.classes_] = model.predict_proba(evaluated)
    stopped = int(np.max(model.n_iter_)) >= MAX_ITERATIONS
    return probabilities, f"solver stopped after {MAX_ITERATIONS} iterations" if stopped else ""


def _checked_labels(labels: npt.ArrayLike, classes: int) -> Ints:
    checked = np.asarray(labels)
    if checked.ndim != 1 or not len(checked):
        raise ValueError("there are no training rows")
    if not np.issubdtype(checked.dtype, np.integer) or checked.min() < 0 or checked.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}")
    return checked.astype(np.int64)
