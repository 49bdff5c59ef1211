"""Contrastive pairs of texts for few-shot tuning of a sentence encoder (SetFit, arXiv:2209.11055)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.batching import RowKey
from finetune.data.tokens import TokenRows, pad_tokens
from finetune.errors import DataError
from finetune.evaluation.predict import mean_pooled
from finetune.objectives import squared_error_sum
from finetune.randomness import numpy_generator


@dataclass(frozen=True)
class PairRows:
    """Pairs of texts as rows: the token ids of two, and whether they are of one class.

    Attributes:
        texts: the texts that pairs are made of.
        pairs: [rows, 3] int: first text, second text, 1 where both are of one class, else 0.
    """

    texts: TokenRows
    pairs: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the longer text of each pair, [rows]."""
        return self.texts.lengths[self.pairs[:, :2]].max(1)

    @property
    def token_ids(self) -> np.ndarray:
        """Ids of all texts end to end, [tokens]: no others occur."""
        return self.texts.token_ids

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        ids = self.texts.columns["input_ids"]
        starts, ends = self.texts.offsets[:-1], self.texts.offsets[1:]
        return [
            {"texts": [ids[starts[text] : ends[text]] for text in self.pairs[key.index, :2]],
             "same": self.pairs[key.index, 2]} for key in keys
        ]  # fmt: skip


def setfit_pairs(labels: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """Pairs as `sentence_pairs_generation` of SetFit 0.x draws them: [2 x rounds x texts, 3], see `PairRows`.

    In each round every text meets one of its own class (itself among them) and one of another, both drawn with equal
    chances; SetFit's published few-shot numbers take 20 rounds. SetFit 1.x lists all pairs instead, and repeats the
    rarer kind. Each draw is a function of (seed, round, text).

    Args:
        labels: [texts] int class indices.

    Raises:
        DataError: all texts are of one class.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("Pairs need training rows of two classes at least.", "Label rows of another class.")
    found = np.unique(labels)
    of_class = {label: (np.flatnonzero(labels == label), np.flatnonzero(labels != label)) for label in found}
    pairs = []
    for number in range(rounds):
        for text, label in enumerate(labels):
            generator = numpy_generator(seed, "pairs", number, text)
            own, others = of_class[label]
            pairs += [(text, generator.choice(own), 1), (text, generator.choice(others), 0)]
    return np.array(pairs, dtype=np.int64)


def pad_texts_or_pairs(rows: list[dict[str, Any]], pad_token_id: int, each_once: bool = False) -> dict[str, Any]:
    """A batch of texts, or of pairs: first texts, then second ones, [2 x pairs, longest], and `same` [pairs].

    Args:
        each_once: a text that is in several pairs stands in the batch once, and `places` says which row each text of
            the pairs is, [2 x pairs].
    """
    if "texts" not in rows[0]:
        return pad_tokens(rows, pad_token_id)
    texts = [{"input_ids": row["texts"][side]} for side in (0, 1) for row in rows]
    same_P = torch.tensor([float(row["same"]) for row in rows])
    if not each_once:
        return {**pad_tokens(texts, pad_token_id), "same": same_P}
    names = [text["input_ids"].tobytes() for text in texts]
    unlike = dict(zip(names, texts, strict=True))
    place = {name: number for number, name in enumerate(unlike)}
    places = torch.tensor([place[name] for name in names])
    return {**pad_tokens(list(unlike.values()), pad_token_id), "same": same_P, "places": places}


def cosine_error_sum(
    hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, same_P: torch.Tensor, places: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over pairs of (cosine of the mean-pooled texts - same)²: CosineSimilarityLoss of sentence-transformers.

    Args:
        hidden_BTD: the encoder's last hidden states, B = 2 P: first texts, then second.
        places: where the texts of the pairs are in the batch, [2 P], when it has each text once.
    """
    pooled_BD = mean_pooled(hidden_BTD, mask_BT)
    first_PD, second_PD = (pooled_BD if places is None else pooled_BD[places]).chunk(2)
    return squared_error_sum(F.cosine_similarity(first_PD, second_PD), same_P)
