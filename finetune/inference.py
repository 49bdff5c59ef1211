"""`finetune predict`: a run's exported model on new rows, through nothing but the exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.data.batching import RowKey
from finetune.data.tokens import pad_tokens
from finetune.errors import ConfigError, DataError
from finetune.evaluation.predict import predict_rows
from finetune.hardware import use_threads
from finetune.language_modeling import generate
from finetune.prediction_files import check_out, read_rows, write_rows
from finetune.run_folder import read_record

if TYPE_CHECKING:
    from finetune.image_inference import ImageClassifier

NEW_TOKENS = 100
_DAMAGED = "The folder is not whole; copy it again from where the run was made."


def predict(
    run: str,
    texts: list[str] | None,
    file: str | None,
    out: str | None,
    column: str | None,
    tokens: int | None = None,
    images: list[str] | None = None,
) -> int:
    """Print predictions for texts, or write a file's rows with `prediction` and `probability` (`generated`) added.

    Args:
        images: paths of images, instead of texts; a file's rows are paths, relative to the file, where the run is one
            of images.
        tokens: most tokens that a language model writes after each text; None takes 100.

    Raises:
        ConfigError: no finished run there, labels of record and model differ, or flags that don't go together.
        DataError: the file can't be read, or has no such column.
    """
    if file is None and (out is not None or column is not None):
        raise ConfigError("--out and --column go with --file.", "Leave them out with --text and --image.")
    if file is not None and out is None:
        raise ConfigError("--file needs --out.", "Name where to write, for example --out labelled.csv")
    if any(not text.strip() for text in texts or []):
        raise ConfigError("--text is empty.", "There is nothing to predict; leave it out.")
    if out is not None:
        check_out(Path(out))
    record = _completed(Path(run))
    if tokens is not None and (record["task"] != "text-generation" or tokens < 1):
        raise ConfigError(f"--max-new-tokens {tokens} is a number from 1 on, for a language model's run.")
    of_images = record["task"] == "image-classification"
    if (texts is not None and of_images) or (images is not None and not of_images):
        raise ConfigError(
            f"{run} is a run of {record['task']}, not of {'texts' if of_images else 'images'}.",
            f"Give {'--image' if of_images else '--text'} or --file.",
        )
    predictor: TextGenerator | TextClassifier | ImageClassifier
    if of_images:
        from finetune.image_inference import ImageClassifier

        predictor = ImageClassifier(Path(run), record, Path(file).parent if file is not None else Path())
    elif record["task"] == "text-generation":
        predictor = TextGenerator(Path(run), record, tokens or NEW_TOKENS)
    else:
        predictor = TextClassifier(Path(run))
    if file is None or out is None:
        given, kind = (images, "image") if of_images else (texts, "text")
        for value, prediction in zip(given or [], predictor(given or []), strict=True):
            print(json.dumps({kind: value, **prediction}, ensure_ascii=False))
        return 0
    columns, name = read_rows(Path(file), column, predictor.text_column, "image" if of_images else "text")
    clash = [added for added in predictor.added if added in columns]
    if clash:
        raise DataError(f"{file} has a column {clash[0]!r} already.", "Rename it; nothing is overwritten.")
    predictions = predictor(columns[name])
    for added in predictor.added:
        columns[added] = [prediction[added] for prediction in predictions]
    write_rows(columns, Path(out))
    print(f"{out}: {len(predictions):,} rows")
    return 0


def _completed(run: Path) -> dict[str, Any]:
    record = read_record(run)
    if record["status"] != "completed":
        raise ConfigError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    return record


def loaded(folder: Path, auto_class: str, reader_class: str = "AutoTokenizer") -> tuple[Any, Any]:
    """Tokenizer (or image processor) and model in fp32, as anybody loads them; whatever is wrong is one message."""
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A folder that isn't there would be taken for the name of a model on the hub.
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder / 'config.json'} is not there.", _DAMAGED)
    try:
        reader = getattr(transformers, reader_class).from_pretrained(folder, local_files_only=True)
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        # Many kinds, because each file of a model folder is read by another library.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} can't be loaded: {reason}", _DAMAGED) from None
    if info["missing_keys"]:
        # transformers would predict with random numbers in their place.
        raise ConfigError(f"{folder} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}.", _DAMAGED)
    return reader, model


def labels_of(model: Any, record: dict[str, Any], folder: Path) -> list[str]:
    """The class names of an exported classifier.

    Raises:
        ConfigError: they are not the record's.
    """
    names = model.config.id2label
    labels = [names.get(index, "?") for index in range(model.config.num_labels)]
    if labels != record["data"]["labels"]:
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


class TextGenerator:
    """A run's exported language model, in fp32: what it goes on with after a text, sampled with the run's seed.

    Raises:
        ConfigError: the model can't be loaded.
    """

    added = ("generated",)

    def __init__(self, run: Path, record: dict[str, Any], tokens: int) -> None:
        self.tokens, self.seed = tokens, record["seed"]
        self.text_column = record["config"].get("data", {}).get("text")
        self.tokenizer, self.model = loaded(run / "model", "AutoModelForCausalLM")
        self.model.to(own_accelerator().device)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """What follows each text, in order."""
        return [{"generated": generate(self.model, self.tokenizer, text, self.tokens, self.seed)} for text in texts]


class TextClassifier:
    """A run's exported text classifier, in fp32 as `transformers.pipeline` would run it.

    Raises:
        ConfigError: the run has no finished model, or its labels are not the record's.
    """

    added = ("prediction", "probability")

    def __init__(self, run: Path) -> None:
        record, folder = _completed(run), run / "model"
        if record["task"] != "text-classification":
            raise ConfigError(
                f"{run} is a {record['task']} run; predict knows text-classification and text-generation."
            )
        self.text_column = record["config"].get("data", {}).get("text")
        self.tokenizer, self.model = loaded(folder, "AutoModelForSequenceClassification")
        self._accelerator = own_accelerator()
        self.model.to(self._accelerator.device)
        self.labels = labels_of(self.model, record, folder)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """Prediction, its probability and all probabilities of each text, in order."""
        tokens = self.tokenizer(texts, truncation=True, return_attention_mask=False)["input_ids"]
        rows = _ListRows(tokens)
        probabilities_RC = predict_rows(
            self.model,
            rows,
            lambda some: pad_tokens(some, self.tokenizer.pad_token_id),
            lambda model, batch: model(**batch).logits.float().softmax(-1),
            self._accelerator,
            "predict",
        )
        return named(self.labels, probabilities_RC)


class _ListRows:
    def __init__(self, tokens: list[list[int]]) -> None:
        self.tokens = tokens
        self.lengths = np.array([len(ids) for ids in tokens])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [{"input_ids": np.asarray(self.tokens[key.index])} for key in keys]
