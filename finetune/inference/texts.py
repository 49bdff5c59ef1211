"""`finetune predict` for classifiers and scorers of texts and of pairs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune.data.tokens import pad_tokens
from finetune.evaluation.predict import predict_rows
from finetune.inference.exported import ListRows, load_exported, named, own_accelerator


class TextClassifier:
    """A run's exported text classifier, in fp32 as `transformers.pipeline` would run it.

    Raises:
        ConfigError: the model can't be loaded, or its labels are not the record's.
    """

    added: tuple[str, ...]

    def __init__(self, run: Path, record: dict[str, Any]) -> None:
        self.text_column = record["config"].get("data", {}).get("text")
        self.tokenizer, self.model, self.labels = load_exported(run, record, "AutoModelForSequenceClassification")
        self.regression = self.model.config.problem_type == "regression"
        self.added = ("prediction",) if self.regression else ("prediction", "probability")
        self._accelerator = own_accelerator()
        self.model.to(self._accelerator.device)

    def __call__(self, texts: list[Any]) -> list[dict[str, Any]]:
        """Prediction, its probability and all probabilities of each text, in order; a number alone for regression."""
        return self._answers(self.tokenizer(texts, truncation=True, return_attention_mask=False))

    def _answers(self, encoded: Any) -> list[dict[str, Any]]:
        probabilities_RC = predict_rows(
            self.model,
            ListRows({name: encoded[name] for name in encoded}),
            lambda some: pad_tokens(some, self.tokenizer.pad_token_id),
            lambda model, batch: _answer(model(**batch).logits.float(), self.regression),
            self._accelerator,
            "predict",
        )
        if self.regression:
            return [{"prediction": round(float(row[0]), 6)} for row in probabilities_RC]
        return named(self.labels, probabilities_RC)


class PairClassifier(TextClassifier):
    """The same for a run on pairs of texts: (text, other text) each."""

    def __call__(self, texts: list[Any]) -> list[dict[str, Any]]:
        """Prediction of each pair, in order; its probability and all probabilities unless it is a number."""
        first, second = [text for text, _ in texts], [other for _, other in texts]
        return self._answers(self.tokenizer(first, second, truncation=True, return_attention_mask=False))


def _answer(logits_BC: torch.Tensor, regression: bool) -> torch.Tensor:
    return logits_BC if regression else logits_BC.softmax(-1)
