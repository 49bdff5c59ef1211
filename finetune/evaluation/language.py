"""Perplexity and bits per byte of a language model, with intervals over documents, and its paired gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from finetune.data.blocks import Blocks
from finetune.data.conversations import ChatRows
from finetune.evaluation.intervals import Floats, Interval, Ints, bootstrap, percentile_interval
from finetune.evaluation.paired import Gain

LN2 = float(np.log(2.0))


class DocumentLosses(NamedTuple):
    """Of each document: summed cross-entropy in nats, targets, and bytes of its text in UTF-8; [documents] each."""

    loss: Floats
    tokens: Floats
    bytes: Floats


def document_losses(blocks: Blocks, losses_RT: npt.ArrayLike, text_bytes: npt.ArrayLike) -> DocumentLosses:
    """Add up the losses of every target (blocks' rows x positions; anything beyond a block's end is left out)."""
    documents = blocks.documents()
    inside = documents >= 0
    count = len(blocks.document_ends)
    losses = np.asarray(losses_RT, dtype=np.float64)[inside]
    return DocumentLosses(
        np.bincount(documents[inside], losses, minlength=count).astype(np.float64),
        np.bincount(documents[inside], minlength=count).astype(np.float64),
        np.asarray(text_bytes, dtype=np.float64),
    )


def language_metrics(documents: DocumentLosses, seed: int) -> dict[str, Interval]:
    """perplexity, bits_per_byte and loss (nats a token), each with a 95 % bootstrap interval over documents.

    Sums over documents are divided last, so a long document counts as much as its tokens. The bytes are those of the
    text, whatever the tokenizer makes of it, so bits per byte compares models of different vocabularies; the loss of
    predicting the document's end is part of it.
    """

    def resampled(rows_of: Ints) -> dict[str, Floats]:
        loss = documents.loss[rows_of].sum(axis=1)
        mean = loss / documents.tokens[rows_of].sum(axis=1)
        return {
            "perplexity": np.exp(mean),
            "bits_per_byte": loss / LN2 / documents.bytes[rows_of].sum(axis=1),
            "loss": mean,
        }

    count = len(documents.loss)
    values = resampled(np.arange(count)[None, :])
    samples = bootstrap(resampled, count, seed)
    return {name: Interval(float(values[name][0]), *percentile_interval(samples[name]), count) for name in values}


def perplexity_reduction(after: DocumentLosses, before: DocumentLosses, seed: int) -> Gain:
    """By what share the perplexity fell, paired over documents; p of Wilcoxon's signed-rank test on nats a token."""
    count, tokens = len(after.loss), after.tokens
    difference = after.loss - before.loss

    def resampled(rows_of: Ints) -> dict[str, Floats]:
        return {"fell": -np.expm1(difference[rows_of].sum(axis=1) / tokens[rows_of].sum(axis=1))}

    value = float(resampled(np.arange(count)[None, :])["fell"][0])
    per_token = difference / tokens
    p = float(scipy.stats.wilcoxon(per_token).pvalue) if per_token.any() else 1.0
    return Gain(
        "perplexity_reduction", value, *percentile_interval(bootstrap(resampled, count, seed)["fell"]), count, p
    )


class LanguageModelJudge:
    """Judges the losses of every target, [rows of blocks, block_tokens], by split.

    Args:
        blocks: the rows that were judged, by split.
        text_bytes: UTF-8 bytes of each document, by split, [documents] each.
        seed: of the bootstrap intervals.
    """

    best_metric = "log_likelihood"

    def __init__(self, blocks: Mapping[str, Blocks], text_bytes: Mapping[str, npt.ArrayLike], seed: int) -> None:
        self.blocks, self.text_bytes, self.seed = blocks, text_bytes, seed

    def documents(self, split: str, outputs: npt.ArrayLike) -> DocumentLosses:
        """Losses, targets and bytes of a split's documents."""
        return document_losses(self.blocks[split], outputs, self.text_bytes[split])

    def quick(self, split: str, outputs: npt.ArrayLike) -> dict[str, float]:
        """Values for evaluations in the middle of a run; `log_likelihood` is the loss with its sign turned."""
        loss, tokens, text_bytes = (float(part.sum()) for part in self.documents(split, outputs))
        return {
            "perplexity": float(np.exp(loss / tokens)),
            "bits_per_byte": loss / LN2 / text_bytes,
            "loss": loss / tokens,
            "log_likelihood": -loss / tokens,
        }

    def judge(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """What run.json holds of a split: `metrics` with 95 % intervals over documents."""
        found = language_metrics(self.documents(split, outputs), self.seed)
        return {"metrics": {name: interval.as_dict() for name, interval in found.items()}}

    def gain(self, split: str, outputs: npt.ArrayLike, baseline: npt.ArrayLike) -> dict[str, Any]:
        """By what share the perplexity is lower than the baseline's, over the same documents."""
        after, before = self.documents(split, outputs), self.documents(split, baseline)
        return {**perplexity_reduction(after, before, self.seed).as_dict(), "test": "Wilcoxon"}

    def columns(self, split: str, outputs: npt.ArrayLike) -> dict[str, Any]:
        """Columns of predictions.parquet besides the document ids: sums, so that others can be made of them."""
        loss, tokens, text_bytes = self.documents(split, outputs)
        return {
            "loss_sum": loss,
            "tokens": tokens.astype(np.int64),
            "bytes": text_bytes.astype(np.int64),
            "perplexity": np.exp(loss / tokens),
        }


class AnswerJudge(LanguageModelJudge):
    """Judges the summed loss of each conversation's targets, [rows, 1], by split; intervals are over conversations.

    Args:
        rows: the rows that were judged, by split.
        seed: of the bootstrap intervals.
    """

    def __init__(self, rows: Mapping[str, ChatRows], seed: int) -> None:
        self.rows, self.seed = rows, seed

    def documents(self, split: str, outputs: npt.ArrayLike) -> DocumentLosses:
        """Losses, targets and bytes of a split's conversations."""
        rows, losses_R1 = self.rows[split], np.asarray(outputs, dtype=np.float64)
        return DocumentLosses(losses_R1[:, 0], rows.targets.astype(np.float64), rows.target_bytes.astype(np.float64))
