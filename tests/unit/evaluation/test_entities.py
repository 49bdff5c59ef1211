"""Strict spans against seqeval's and by hand, scores against scikit-learn-style counts, and what the judge says."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.windows import Windows
from finetune.evaluation.entities import EntityJudge, Span, spans

pytestmark = pytest.mark.unit

NAMES = ("O", "B-A", "I-A", "B-B", "I-B")
IOBES = (*NAMES, "E-A", "S-A", "E-B", "S-B")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-A I-A O", [Span("A", 1, 2)]),
        ("B-A B-A", [Span("A", 0, 0), Span("A", 1, 1)]),
        ("I-A I-A", []),
        ("B-A I-B I-B", [Span("A", 0, 0)]),
        ("B-A O I-A", [Span("A", 0, 0)]),
        ("O", []),
    ],
)
def test_spans_of_iob2_by_hand(tags: str, found: list[Span]) -> None:
    assert spans(tags.split(), iobes=False) == found


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("S-A B-A I-A E-A", [Span("A", 0, 0), Span("A", 1, 3)]),
        ("B-A O", []),
        ("B-A I-A", []),
        ("B-A E-B", []),
        ("E-A", []),
        ("B-A S-B E-A", [Span("B", 1, 1)]),
    ],
)
def test_spans_of_iobes_by_hand(tags: str, found: list[Span]) -> None:
    assert spans(tags.split(), iobes=True) == found


@pytest.mark.parametrize("iobes", [False, True])
def test_spans_are_seqevals_strict_ones(iobes: bool) -> None:
    scheme = pytest.importorskip("seqeval.scheme", reason="seqeval (extra: test) is not installed")
    generator = np.random.default_rng(0)
    names = IOBES if iobes else NAMES
    sequences = [[names[tag] for tag in generator.integers(len(names), size=7)] for _ in range(2000)]
    theirs = scheme.Entities(sequences, scheme.IOBES if iobes else scheme.IOB2)
    for tags, entities in zip(sequences, theirs.entities, strict=True):
        assert {tuple(span) for span in spans(tags, iobes)} == {(e.tag, e.start, e.end - 1) for e in entities}


def judge_of(sentences: list[list[int]]) -> tuple[EntityJudge, Windows]:
    lengths = np.array([len(sentence) for sentence in sentences])
    ends = np.cumsum(lengths)
    windows = Windows(
        np.zeros(ends[-1], np.int32), np.concatenate([[0], ends]), ends,
        np.repeat(np.arange(len(sentences)), lengths), np.concatenate([np.arange(size) for size in lengths]),
        np.concatenate(sentences), 0,
    )  # fmt: skip
    return EntityJudge({"test": windows}, NAMES, seed=1), windows


def outputs_of(windows: Windows, tags: np.ndarray, width: int = 9) -> np.ndarray:
    outputs = np.zeros((len(windows), 2 * width))
    outputs[windows.owner, windows.position] = tags
    return outputs


def test_scores_by_hand() -> None:
    judge, windows = judge_of([[1, 2, 0, 3], [0, 0, 1], [3, 4, 4]])
    outputs = outputs_of(windows, np.array([1, 2, 0, 1, 0, 0, 1, 3, 4, 0]))
    told = judge.judge("test", outputs)
    values = {name: metric["value"] for name, metric in told["metrics"].items()}
    # Found: A at 0-1 of the first, A of the second. Predicted 4 (A, A, A, B), true 4 (A, B, A, B).
    assert values == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "macro_f1": 0.4})
    assert [row["support"] for row in told["per_class"]] == [2, 2]
    assert told["per_class"][0]["f1"] == pytest.approx(0.8)
    assert judge.quick("test", outputs) == pytest.approx(values)
    assert judge.columns("test", outputs)["prediction"][2] == ["B-B", "I-B", "O"]


def test_intervals_and_gains_over_sentences() -> None:
    generator = np.random.default_rng(0)
    judge, windows = judge_of([generator.choice([0, 0, 1, 3], size=6).tolist() for _ in range(120)])
    assert windows.tags is not None
    some = np.where(generator.random(len(windows.tags)) < 0.7, windows.tags, 0)
    right, partly = outputs_of(windows, windows.tags), outputs_of(windows, some)
    metrics = judge.judge("test", partly)["metrics"]
    assert metrics["f1"]["low"] < metrics["f1"]["value"] < metrics["f1"]["high"]
    assert metrics["precision"]["value"] == 1.0
    assert metrics["f1"]["n"] == 120
    gain = judge.gain("test", right, partly)
    assert gain["value"] == pytest.approx(1 - metrics["f1"]["value"])
    assert gain["low"] > 0
    assert gain["p"] < 0.01
