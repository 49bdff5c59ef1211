"""The parts of a task over pairs of texts: what settings go together, its loss, and baselines that see both texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.data.tokens import TokenRows, tokenize
from finetune.errors import ConfigError
from finetune.evaluation.judge import ClassificationJudge
from finetune.evaluation.predict import Predict, mean_pooled, predict_rows
from finetune.evaluation.regression import RegressionJudge
from finetune.objectives import balanced_class_weights, cross_entropy_sum, squared_error_sum, target_count
from finetune.task import SomeRows
from finetune.text_classification import label_maps, native_bf16

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.task import Batch, Collate
    from finetune.text_settings import PairObjective

SCORE = "score"


class PairHead:
    """What differs between classifying pairs and scoring them.

    Args:
        labels: class names in class-index order; none for regression.

    Raises:
        ConfigError: a setting that this kind ignores, or a positive label that is none.
    """

    def __init__(self, objective: PairObjective, labels: tuple[str, ...], rows: Mapping[str, TokenRows], seed: int):
        self.objective, self.regression = objective, objective.kind == "regression"
        targets: dict[str, Any] = {name: tokens.labels for name, tokens in rows.items()}
        if self.regression:
            self.config = {
                "num_labels": 1,
                "problem_type": "regression",
                "id2label": {0: SCORE},
                "label2id": {SCORE: 0},
            }
            self.judge: RegressionJudge | ClassificationJudge = RegressionJudge(targets, seed)
            return
        positive = None
        if objective.positive is not None:
            if objective.positive not in labels:
                raise ConfigError(
                    f"objective.positive={objective.positive} is no label.", f"The labels are {', '.join(labels[:20])}."
                )
            positive = labels.index(objective.positive)
        self.config = label_maps(labels)
        self.judge = ClassificationJudge(targets, labels, seed, objective.best_metric, positive)
        self.weights_C = None
        if objective.class_weights == "balanced":
            self.weights_C = balanced_class_weights(torch.bincount(torch.as_tensor(targets["train"])))

    def loss_sum(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, or the squared error of the only logit, summed over rows."""
        if self.regression:
            return squared_error_sum(logits_BC[:, 0], labels_B)
        weights = None if self.weights_C is None else self.weights_C.to(labels_B.device)
        return cross_entropy_sum(logits_BC, labels_B, weights, self.objective.label_smoothing)

    def count(self, batch: Batch) -> torch.Tensor:
        """What the sum is divided by."""
        return target_count(batch["labels"], None if self.regression else self.weights_C)

    def outputs(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Probabilities, [rows, classes], or predicted numbers, [rows, 1]."""
        return logits_BC.float() if self.regression else logits_BC.float().softmax(-1)


def refuse_ignored(objective: PairObjective) -> None:
    """Regression has no classes: refuse settings that speak of them.

    Raises:
        ConfigError: names the setting.
    """
    if objective.kind == "regression":
        for name in ("label_smoothing", "class_weights", "best_metric", "positive"):
            if getattr(objective, name) != type(objective).model_fields[name].default:
                raise ConfigError(
                    f"objective.{name}={getattr(objective, name)} is ignored by objective.kind=regression.",
                    f"Leave objective.{name} out, or set objective.kind=classification.",
                )


def pair_baselines(
    data: LoadedData,
    tokenizer: PreTrainedTokenizerBase,
    encoder: torch.nn.Module,
    collate: Collate,
    max_tokens: int,
    seed: int,
) -> Callable[[Accelerator, Predict], list[Baseline]]:
    """Majority class (or the mean), TF-IDF of both texts under a linear model, and the encoder as it came.

    The encoder reads each text alone. For classes a logistic regression is fitted on [u, v, |u - v|, u * v]
    (InferSent, arXiv:1705.02364); for numbers the cosine of u and v is scaled to the training labels by a line. Its
    features are computed by all processes together, the rest by the main one.
    """
    regression = not data.labels

    def vectors(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16, enabled=native_bf16(batch)):
            return mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"])

    def encoded(
        split: str, chosen: np.ndarray, accelerator: Accelerator, predict: Predict
    ) -> tuple[np.ndarray, np.ndarray]:
        u, v = (
            predict(
                encoder,
                SomeRows(tokenize(data.splits[split], tokenizer, max_tokens, (role,), label=None), chosen),
                collate, vectors, accelerator, "probe",
            )
            for role in ("text", "text_pair")
        )  # fmt: skip
        return u, v

    def compute(accelerator: Accelerator, predict: Predict = predict_rows) -> list[Baseline]:
        from finetune.evaluation import pair_baselines as simple
        from finetune.evaluation.baselines import majority_class, probe, sample_rows

        train, test = data.splits["train"], data.splits["test"]
        chosen, note = sample_rows(len(train), seed)
        encoder.to(accelerator.device)
        pairs = tuple(
            encoded(split, some, accelerator, predict)
            for split, some in (("train", chosen), ("test", np.arange(len(test))))
        )
        if not accelerator.is_main_process:
            return []
        labels = np.asarray(train["label"])[chosen]
        texts = [(list(some["text"]), list(some["text_pair"])) for some in (train.select(chosen), test)]
        if regression:
            found = [
                simple.mean_label(labels, len(test)),
                simple.tfidf_ridge(texts[0], labels, texts[1]),
                simple.scaled_cosine(pairs[0], labels, pairs[1]),
            ]
        else:
            classes = len(data.labels)
            features = [np.hstack([u, v, np.abs(u - v), u * v]) for u, v in pairs]
            found = [
                majority_class(labels, len(test), classes),
                simple.tfidf_pair_logreg(texts[0], labels, texts[1], classes=classes),
                probe(features[0], labels, features[1], classes=classes, seed=seed),
            ]
        return [replace(some, note="; ".join(filter(None, [some.note, note]))) for some in found]

    return compute
