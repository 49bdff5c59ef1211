"""What every predictor begins with: a finished run's model/ folder, loaded as anybody loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from finetune.data.batching import RowKey
from finetune.data.sources import checked_weights
from finetune.errors import ConfigError
from finetune.files import sha256_file
from finetune.hardware import use_threads
from finetune.run_folder import read_record

DAMAGED = "The folder is not whole; copy it again from where the run was made."


class Predictor(Protocol):
    """A run's exported model: texts (or pairs of them, or paths of images) to an answer of each, in order.

    Attributes:
        added: keys of an answer that become columns of a file.
        text_column: the column that the run was trained on, where it was named.
    """

    added: tuple[str, ...]
    text_column: str | None

    def __call__(self, texts: list[Any], /) -> list[dict[str, Any]]: ...


def completed(run: Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        ConfigError: there is none, or the run isn't finished.
    """
    record = read_record(run)
    if record["status"] != "completed":
        raise ConfigError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    return record


def check_files(run: Path, record: dict[str, Any]) -> None:
    """Compare what a run exported with the hashes that its record has of it.

    Raises:
        ConfigError: names the file that is missing or another.
    """
    folder = run / ("model" if "model" in record.get("export_check", {}).get("parts", {}) else "adapter")
    if folder.is_dir():
        for name, expected in record.get("export_check", {}).get("sha256", {}).items():
            if not (folder / name).is_file() or sha256_file(folder / name) != expected:
                raise ConfigError(f"{folder / name} is not the one that the run wrote.", DAMAGED)


def loaded(folder: Path, auto_class: str, reader_class: str = "AutoTokenizer") -> tuple[Any, Any]:
    """Tokenizer (or image processor) and model in fp32, as anybody loads them; whatever is wrong is one message."""
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A folder that isn't there would be taken for the name of a model on the hub.
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder / 'config.json'} is not there.", DAMAGED)
    checked_weights(folder, str(folder))
    # Without a word about it, transformers asks on the terminal whether a folder's code may run.
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        reader = getattr(transformers, reader_class).from_pretrained(folder, **known)
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder, **known, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        # Many kinds, because each file of a model folder is read by another library.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} can't be loaded: {reason}", DAMAGED) from None
    if info["missing_keys"]:
        # transformers would predict with random numbers in their place.
        raise ConfigError(f"{folder} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}.", DAMAGED)
    return reader, model


def load_exported(run: Path, record: dict[str, Any], auto_class: str) -> tuple[Any, Any, list[str]]:
    """Tokenizer, model in fp32 and class names of a run's model/, whose names must be the record's.

    Raises:
        ConfigError: the folder isn't whole, or its labels are not the record's.
    """
    tokenizer, model = loaded(run / "model", auto_class)
    return tokenizer, model, labels_of(model, record, run / "model")


def labels_of(model: Any, record: dict[str, Any], folder: Path) -> list[str]:
    """The class names of an exported classifier.

    Raises:
        ConfigError: they are not the record's.
    """
    names = model.config.id2label
    labels = [names.get(index, "?") for index in range(model.config.num_labels)]
    # Regression has one output and no labels.
    if labels != record["data"]["labels"] and model.config.problem_type != "regression":
        raise ConfigError(
            f"{folder / 'config.json'} has the labels {labels}, but run.json {record['data']['labels']}.",
            "One of them was changed by hand; a prediction would carry a wrong name.",
        )
    return labels


def named(labels: list[str], probabilities_RC: np.ndarray) -> list[dict[str, Any]]:
    """Prediction, its probability and all probabilities of each row."""
    return [
        {
            "prediction": labels[int(row.argmax())],
            "probability": round(float(row.max()), 6),
            "probabilities": {label: round(float(p), 6) for label, p in zip(labels, row, strict=True)},
        }
        for row in probabilities_RC
    ]


def own_accelerator() -> Any:
    """The Accelerator of a process that predicts alone."""
    from accelerate import Accelerator

    from finetune.hardware import has_accelerator

    use_threads("auto")
    return Accelerator(cpu=not has_accelerator())


class ListRows:
    """Token ids of rows in memory, as a tokenizer gives them."""

    def __init__(self, columns: dict[str, list[list[int]]]) -> None:
        self.columns = columns
        self.lengths = np.array([len(ids) for ids in columns["input_ids"]])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [{name: np.asarray(some[key.index]) for name, some in self.columns.items()} for key in keys]
