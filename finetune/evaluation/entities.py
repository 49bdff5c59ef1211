"""Entities in sequences of tags: strict spans, micro-averaged scores with intervals over sentences, and their judge.

An entity counts as found when its first word, last word and type are all right, and only spans that the scheme allows
are entities (B-X I-X ... in IOB2): seqeval's strict mode, which a test compares this with. The library itself is no
dependency: its last release is of 2020, and intervals need its counts sentence by sentence, which it doesn't give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.data.windows import Windows
from finetune.evaluation.intervals import RESAMPLES, Floats, Interval, Ints, bootstrap, percentile_interval
from finetune.evaluation.paired import Gain


class Span(NamedTuple):
    """Words first to last (inclusive) of an entity."""

    type: str
    first: int
    last: int


class Counts(NamedTuple):
    """Of each sentence and type, how many entities are found, predicted and there; [sentences, types] each."""

    found: Floats
    predicted: Floats
    true: Floats


def spans(tags: Sequence[str], iobes: bool) -> list[Span]:
    """The entities of a sequence of tags; what breaks the scheme is none."""
    entities: list[Span] = []
    start: int | None = None
    for at, tag in enumerate(tags):
        prefix, name = tag[:1], tag[2:]
        if prefix in "BS" and name:
            start = at
        elif prefix not in "IE" or start is None or tags[start][2:] != name:
            start = None
        if start is None:
            continue
        if iobes:
            if prefix in "SE":
                entities.append(Span(name, start, at))
                start = None
        elif at + 1 == len(tags) or tags[at + 1] != f"I-{name}":
            entities.append(Span(name, start, at))
            start = None
    return entities


def entity_counts(true: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], types: Sequence[str]) -> Counts:
    """Count entities by sentence and type."""
    place = {name: at for at, name in enumerate(types)}
    found, there, said = (np.zeros((len(true), len(types))) for _ in range(3))
    for row, (own, others) in enumerate(zip(true, predicted, strict=True)):
        right = set(own)
        for span in own:
            there[row, place[span.type]] += 1
        for span in others:
            said[row, place[span.type]] += 1
            found[row, place[span.type]] += span in right
    return Counts(found, said, there)


def scores(counts: Counts, rows_of: Ints) -> dict[str, Floats]:
    """f1, precision and recall over all entities, and the mean F1 of the types that occur; [samples] each."""
    found, said, there = (part.sum(axis=1) for part in counts)
    micro = [part[rows_of].sum(axis=1) for part in (found, said, there)]
    # A resample of sentences is a vector of how often each is drawn: a product instead of a gather by type.
    drawn = np.stack([np.bincount(rows, minlength=len(found)) for rows in rows_of]).astype(np.float64)
    by_type = [drawn @ part for part in counts]
    f1_types = _ratio(2 * by_type[0], by_type[1] + by_type[2])
    occurring = np.count_nonzero(by_type[1] + by_type[2], axis=1)
    return {
        "f1": _ratio(2 * micro[0], micro[1] + micro[2]),
        "precision": _ratio(micro[0], micro[1]),
        "recall": _ratio(micro[0], micro[2]),
        "macro_f1": f1_types.sum(axis=1) / np.maximum(occurring, 1),
    }


class EntityJudge:
    """Judges the tags of windows, [rows, 2 x tokens] (tag index, then its probability, of every token), by split.

    Args:
        windows: the rows that were judged, with their true tags, by split.
        names: tags in class-index order.
        seed: of the bootstrap intervals.
    """

    best_metric = "f1"

    def __init__(self, windows: Mapping[str, Windows], names: tuple[str, ...], seed: int) -> None:
        self.windows, self.names, self.seed = windows, names, seed
        self.iobes = any(name[:2] in ("E-", "S-") for name in names)
        self.types = sorted({name[2:] for name in names if name != "O"})
        self.true = {split: self.entities(split, some.tags) for split, some in windows.items() if some.tags is not None}

    def words(self, split: str, outputs: npt.ArrayLike) -> tuple[Ints, Floats]:
        """Tag index and probability of each word, [words] each, from the window that owns it."""
        tags_RT, probabilities_RT = np.split(np.asarray(outputs), 2, axis=1)
        windows = self.windows[split]
        return windows.of_words(tags_RT).astype(np.int64), windows.of_words(probabilities_RT).astype(np.float64)

    def entities(self, split: str, tags: Ints) -> list[list[Span]]:
        """Entities of each sentence."""
        names = self.names
        return [spans([names[tag] for tag in some], self.iobes) for some in self.windows[split].by_sentence(tags)]

    def counts(self, split: str, outputs: npt.ArrayLike) -> Counts:
        """Entities found, predicted and there."""
        return entity_counts(self.true[split], self.entities(split, self.words(split, outputs)[0]), self.types)

    def quick(self, split: str, outputs: npt.ArrayLike) -> dict[str, float]:
        """Values for evaluations in the middle of a run."""
        counts = self.counts(split, outputs)
        return {name: float(value[0]) for name, value in scores(counts, _each(counts)).items()}

    def judge(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """What run.json holds of a split: `metrics` with 95 % intervals over sentences, and `per_class` by type."""
        counts = self.counts(split, outputs)
        rows = len(counts.true)
        values = scores(counts, _each(counts))
        samples = bootstrap(lambda rows_of: scores(counts, rows_of), rows, self.seed)
        found, said, there = (part.sum(axis=0) for part in counts)
        precision, recall, f1 = _ratio(found, said), _ratio(found, there), _ratio(2 * found, said + there)
        return {
            "metrics": {
                name: Interval(float(value[0]), *percentile_interval(samples[name]), rows).as_dict()
                for name, value in values.items()
            },
            "per_class": [
                {
                    "label": name,
                    "precision": float(precision[at]),
                    "recall": float(recall[at]),
                    "f1": float(f1[at]),
                    "support": int(there[at]),
                }
                for at, name in enumerate(self.types)
            ],
        }

    def gain(self, split: str, outputs: npt.ArrayLike, baseline: npt.ArrayLike) -> dict[str, Any]:
        """How much higher F1 is than a baseline's, paired over sentences; p of the bootstrap, as its interval."""
        ours, theirs = self.counts(split, outputs), self.counts(split, baseline)

        def resampled(rows_of: Ints) -> dict[str, Floats]:
            return {"gain": scores(ours, rows_of)["f1"] - scores(theirs, rows_of)["f1"]}

        value = float(resampled(_each(ours))["gain"][0])
        gains = bootstrap(resampled, len(ours.true), self.seed)["gain"]
        tail = (min(int((gains <= 0).sum()), int((gains >= 0).sum())) + 1) / (RESAMPLES + 1)
        gain = Gain("f1", value, *percentile_interval(gains), len(ours.true), min(1.0, 2 * tail))
        return {**gain.as_dict(), "test": "paired bootstrap"}

    def columns(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """Columns of predictions.parquet besides the sentence ids: a list a sentence."""
        windows, (tags, probabilities) = self.windows[split], self.words(split, outputs)
        assert windows.tags is not None
        return {
            "label": [[self.names[tag] for tag in some] for some in windows.by_sentence(windows.tags)],
            "prediction": [[self.names[tag] for tag in some] for some in windows.by_sentence(tags)],
            "probability": windows.by_sentence(probabilities),
        }


def _each(counts: Counts) -> Ints:
    """Every sentence once, as a sample."""
    return np.arange(len(counts.true))[None, :]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)
