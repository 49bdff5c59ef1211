"""Baselines: what they return for classes, texts and sizes of every kind."""

import numpy as np
import pytest

from finetune.evaluation import baselines
from finetune.evaluation.baselines import has_no_spaces, majority_class, probe, sample_rows, tfidf_logreg

pytestmark = pytest.mark.unit

GOOD, BAD = (
    ["a great and lovely film", "lovely acting, great music"],
    ["an awful, boring film", "boring plot, awful music"],
)


def test_majority_answers_with_the_class_shares() -> None:
    result = majority_class([2, 2, 0, 2], eval_rows=3, classes=4)
    assert result.outputs.tolist() == [[0.25, 0, 0.75, 0]] * 3


def test_tfidf_learns_words() -> None:
    result = tfidf_logreg([*GOOD, *BAD] * 5, [1, 1, 0, 0] * 5, ["great", "awful"], classes=2, seed=0)
    assert result.outputs.argmax(axis=1).tolist() == [1, 0]
    assert result.note == ""


@pytest.mark.parametrize("baseline", ["tfidf", "probe"])
def test_a_class_without_training_rows_keeps_its_column_and_gets_zero(baseline: str) -> None:
    labels = np.array([3, 3, 1, 1] * 5)
    if baseline == "tfidf":
        result = tfidf_logreg([*GOOD, *BAD] * 5, labels, ["great", "awful"], classes=5, seed=0)
    else:
        features = np.stack([labels, -labels], axis=1).astype(float)
        result = probe(features, labels, [[3.0, -3.0], [1.0, -1.0]], classes=5, seed=0)
    assert result.outputs.shape == (2, 5)
    assert result.outputs.argmax(axis=1).tolist() == [3, 1]
    assert not result.outputs[:, [0, 2, 4]].any()
    np.testing.assert_allclose(result.outputs.sum(axis=1), 1)


def test_a_single_training_class_is_answered_and_said() -> None:
    result = tfidf_logreg(GOOD, [1, 1], ["anything at all"], classes=2, seed=0)
    assert result.outputs.tolist() == [[0.0, 1.0]]
    assert "only one class" in result.note


def test_chinese_is_read_by_characters() -> None:
    texts = ["这部电影非常好看我很喜欢", "演员非常好我喜欢这个故事", "这部电影太差了我很失望", "故事太差让人失望"] * 5
    result = tfidf_logreg(texts, [1, 1, 0, 0] * 5, ["音乐好看喜欢", "音乐太差失望"], classes=2, seed=0)
    assert result.outputs.argmax(axis=1).tolist() == [1, 0]
    assert "character n-grams" in result.note


def test_texts_without_any_word_are_read_by_characters() -> None:
    result = tfidf_logreg(["+ +", "+ + +", "- -", "- - -"] * 3, [1, 1, 0, 0] * 3, ["+", "-"], classes=2, seed=0)
    assert result.outputs.argmax(axis=1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["The Rock is destined to be the 21st Century's new Conan"], False),
        (["Donaudampfschifffahrtsgesellschaft fährt heute nicht auf der Donau"], False),
        (["이 영화는 정말 재미있고 배우들도 훌륭합니다"], False),
        (["这部电影非常好看，我很喜欢。 演员也非常出色，推荐给大家。"], True),
        (["很好看 推荐", "この映画は とても 面白い"], True),
        (["The word 评论 means review in Chinese"], False),
        (["ภาพยนตร์เรื่องนี้ดีมากและฉันชอบนักแสดง"], True),
        (["Smith", "Nakamura", "van Dyke"], True),
        (["", "  "], True),
    ],
)
def test_spaces_between_words(texts: list[str], expected: bool) -> None:
    assert has_no_spaces(texts) is expected


def test_above_the_bound_a_seeded_sample_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_TRAIN_ROWS", 12)
    texts, labels = [*GOOD, *BAD] * 5, np.array([1, 1, 0, 0] * 5)
    first = tfidf_logreg(texts, labels, ["great"], classes=2, seed=0)
    assert first.note == "trained on a seeded sample of 12 of 20 rows"
    again = tfidf_logreg(texts, labels, ["great"], classes=2, seed=0)
    np.testing.assert_array_equal(again.outputs, first.outputs)
    rows, note = sample_rows(20, seed=0)
    assert len(set(rows.tolist())) == 12
    assert note == first.note
    other, _ = sample_rows(20, seed=1)
    assert rows.tolist() != other.tolist()
    # Rows chosen beforehand give what the baseline would have chosen itself.
    chosen = tfidf_logreg([texts[row] for row in rows], labels[rows], ["great"], classes=2, seed=0)
    np.testing.assert_array_equal(chosen.outputs, first.outputs)


def test_up_to_the_bound_all_rows_are_taken() -> None:
    rows, note = sample_rows(20_000, seed=0)
    assert rows.tolist() == list(range(20_000))
    assert note == ""


def test_many_classes_bound_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_COEFFICIENTS", 4000)
    assert baselines.tfidf_vectorizer(False, False, classes=3, rows=10).max_features == 1333
    assert baselines.tfidf_vectorizer(False, False, classes=50, rows=10).max_features == 1000


def test_a_solver_that_was_stopped_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_ITERATIONS", 1)
    generator = np.random.default_rng(0)
    result = probe(generator.normal(size=(60, 5)), generator.integers(0, 3, 60), np.zeros((1, 5)), classes=3, seed=0)
    assert result.note == "solver stopped after 1 iterations"


def test_probe_ignores_the_scale_of_features() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(80, 6)), generator.integers(0, 2, 80)
    scaled = features * [1e-3, 1, 10, 1e4, 1, 1] + [5, 0, -100, 0, 0, 3]
    np.testing.assert_allclose(
        probe(scaled, labels, scaled, classes=2, seed=0).outputs,
        probe(features, labels, features, classes=2, seed=0).outputs,
        atol=1e-8,
    )


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], np.zeros(0, dtype=int), "no training rows"),
        (["a b"], [0, 1], "1 texts have 2 labels"),
        (["a b"], [2], "0 to 1"),
    ],
)
def test_wrong_training_rows_are_refused(texts: list[str], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfidf_logreg(texts, labels, ["a"], classes=2, seed=0)
