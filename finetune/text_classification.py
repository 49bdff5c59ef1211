"""The parts of a text classifier that are the same for every recipe: notes on its rows, its baselines, its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.data.tokens import TokenRows
from finetune.evaluation.predict import Predict, mean_pooled, predict_rows
from finetune.models import save_tokenizer
from finetune.task import SomeRows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.recipe import Recipe
    from finetune.task import Batch, Collate


def text_baselines(
    data: LoadedData, rows: Mapping[str, TokenRows], encoder: torch.nn.Module, collate: Collate, recipe: Recipe
) -> Callable[[Accelerator, Predict], list[Baseline]]:
    """Majority class, TF-IDF + logistic regression, and a probe on the pretrained encoder as it came.

    The encoder's features are computed by all processes together; the rest by the main one.
    """

    seed = recipe.train.seed

    def features(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16, enabled=native_bf16(batch)):
            return mean_pooled(model(**inputs).last_hidden_state, batch["attention_mask"])

    def compute(accelerator: Accelerator, predict: Predict = predict_rows) -> list[Baseline]:
        from finetune.evaluation.baselines import majority_class, probe, sample_rows, tfidf_logreg

        # The same number that the baselines draw their sample with, so that only those rows' features are computed.
        chosen, note = sample_rows(len(rows["train"]), seed)
        encoder.to(accelerator.device)
        train_RD = predict(encoder, SomeRows(rows["train"], chosen), collate, features, accelerator, "probe")
        test_RD = predict(encoder, rows["test"], collate, features, accelerator, "probe")
        if not accelerator.is_main_process:
            return []
        train, test = data.splits["train"], data.splits["test"]
        labels, classes = np.asarray(train["label"]), len(data.labels)
        probed = probe(train_RD, labels[chosen], test_RD, classes=classes, seed=seed)
        return [
            majority_class(labels, len(test), classes),
            tfidf_logreg(list(train["text"]), labels, list(test["text"]), classes=classes, seed=seed),
            probed if not note else type(probed)(probed.name, probed.outputs, note),
        ]

    return compute


def native_bf16(batch: Batch) -> bool:
    """Whether features may be computed in bf16 here."""
    from finetune.hardware import choose_precision

    return choose_precision("auto") == "bf16"


def truncation_notes(rows: Mapping[str, TokenRows], labels: tuple[str, ...], max_tokens: int) -> list[str]:
    """How many rows of each split are cut at the limit, and from which classes."""
    notes = []
    for split, tokens in rows.items():
        if tokens.truncated.any() and tokens.labels is not None:
            note = (
                f"{split}: {int(tokens.truncated.sum())} rows ({tokens.truncated.mean():.1%}) are longer than "
                f"data.max_tokens={max_tokens} and are cut there"
            )
            if labels:
                by_class = np.bincount(tokens.labels[tokens.truncated], minlength=len(labels))
                most = [index for index in np.argsort(-by_class, kind="stable")[:5] if by_class[index]]
                note += f" ({', '.join(f'{labels[index]} {by_class[index]}' for index in most)})"
            notes.append(note)
    return notes


def label_maps(labels: tuple[str, ...]) -> dict[str, Any]:
    """id2label and label2id for a model's configuration."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def save_model(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Callable[[torch.nn.Module, Path], None]:
    """A function that writes model, tokenizer and configuration as plain `transformers` reads them."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        # What the model was trained on is the longest that it should be given.
        tokenizer.model_max_length = max_tokens
        save_tokenizer(tokenizer, folder)
        for weights in folder.glob("*.safetensors"):
            # safetensors makes files that only their owner reads; a model is to be handed on like the rest.
            weights.chmod((folder / "config.json").stat().st_mode)

    return save
