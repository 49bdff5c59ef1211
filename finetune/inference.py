"""`finetune predict`: a run's exported model on new rows, through nothing but the exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from finetune.chat import answer
from finetune.data.batching import RowKey
from finetune.data.tokens import pad_tokens
from finetune.errors import ConfigError, DataError
from finetune.evaluation.predict import predict_rows
from finetune.hardware import use_threads
from finetune.language_modeling import generate
from finetune.prediction_files import check_out, read_pairs, read_rows, write_rows
from finetune.run_folder import read_record

if TYPE_CHECKING:
    pass

NEW_TOKENS = 100
_DAMAGED = "The folder is not whole; copy it again from where the run was made."


class Predictor(Protocol):
    """A run's exported model: texts (or pairs of them) to what `added` names, and more, of each."""

    added: tuple[str, ...]
    text_column: str | None

    def __call__(self, texts: list[Any], /) -> list[dict[str, Any]]: ...


def predict(
    run: str,
    texts: list[str] | None,
    file: str | None,
    out: str | None,
    column: str | None,
    tokens: int | None = None,
    pairs: list[str] | None = None,
    pair_column: str | None = None,
    images: list[str] | None = None,
) -> int:
    """Print predictions for texts, or write a file's rows with `prediction` and `probability` added.

    A language model adds `generated`, a tagger `entities`, regression `prediction` alone.

    Args:
        pairs, pair_column: the second texts, or their column, for a run on pairs of texts.
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
    paired = "text_pair" in record["config"].get("data", {})
    _refuse_odd_pairs(run, paired, texts, pairs, file, pair_column)
    predictor: Predictor
    if of_images:
        from finetune.image_inference import ImageClassifier

        predictor = ImageClassifier(Path(run), record, Path(file).parent if file is not None else Path())
    elif record["task"] == "text-generation":
        predictor = TextGenerator(Path(run), record, tokens or NEW_TOKENS)
    elif record["task"] == "token-classification":
        from finetune.entity_inference import EntityTagger

        predictor = EntityTagger(Path(run), record)
    elif paired:
        predictor = PairClassifier(Path(run))
    else:
        predictor = TextClassifier(Path(run))
    if file is None or out is None:
        kind = "image" if of_images else "text"
        given = [{kind: value} for value in (images if of_images else texts) or []]
        if paired:
            given = [{**row, "text_pair": pair} for row, pair in zip(given, pairs or [], strict=True)]
        for row, prediction in zip(given, predictor(_inputs(list(row.values()) for row in given)), strict=True):
            print(json.dumps({**row, **prediction}, ensure_ascii=False))
        return 0
    if isinstance(predictor, PairClassifier):
        columns, names = read_pairs(
            Path(file), {"text": column, "text_pair": pair_column}, {"text": predictor.text_column, **predictor.second}
        )
    else:
        columns, name = read_rows(Path(file), column, predictor.text_column, "image" if of_images else "text")
        names = [name]
    clash = [added for added in predictor.added if added in columns]
    if clash:
        raise DataError(f"{file} has a column {clash[0]!r} already.", "Rename it; nothing is overwritten.")
    predictions = predictor(_inputs(zip(*(columns[name] for name in names), strict=True)))
    for added in predictor.added:
        values = [prediction[added] for prediction in predictions]
        if Path(out).suffix in (".csv", ".tsv"):  # which hold no lists
            values = [json.dumps(some, ensure_ascii=False) if isinstance(some, list) else some for some in values]
        columns[added] = values
    write_rows(columns, Path(out))
    print(f"{out}: {len(predictions):,} rows")
    return 0


def _inputs(rows: Iterable[Iterable[str]]) -> list[Any]:
    """Texts as a predictor takes them: each by itself, or as (text, other text)."""
    found = [tuple(row) for row in rows]
    return [row[0] if len(row) == 1 else row for row in found]


def _refuse_odd_pairs(
    run: str, paired: bool, texts: list[str] | None, pairs: list[str] | None, file: str | None, column: str | None
) -> None:
    if not paired and (pairs or column):
        raise ConfigError(f"{run} predicts from one text.", "Leave --text-pair and --column-pair out.")
    if file is not None and pairs:
        raise ConfigError("--text-pair goes with --text.", "A file has both texts: name its column by --column-pair.")
    if file is None and column is not None:
        raise ConfigError("--column-pair goes with --file.", "Leave it out with --text.")
    if paired and file is None and len(texts or []) != len(pairs or []):
        raise ConfigError(
            f"{run} predicts from two texts: {len(texts or [])} --text and {len(pairs or [])} --text-pair are given.",
            'Give one --text-pair after each --text: --text "A man sings." --text-pair "Someone sings."',
        )
    if any(not text.strip() for text in pairs or []):
        raise ConfigError("--text-pair is empty.", "There is nothing to predict; leave it out.")


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


class TextGenerator:
    """A run's exported language model, in fp32: what it goes on with after a text, sampled with the run's seed.

    Raises:
        ConfigError: the model can't be loaded.
    """

    added: tuple[str, ...] = ("generated",)

    def __init__(self, run: Path, record: dict[str, Any], tokens: int) -> None:
        self.tokens, self.seed = tokens, record["seed"]
        data = record["config"].get("data", {})
        # A run on conversations answers; another goes on from the text as it stands.
        self.chat = "response" in data
        self.text_column = data.get("prompt" if self.chat else "text")
        self.tokenizer, self.model = loaded(run / "model", "AutoModelForCausalLM")
        self.model.to(own_accelerator().device)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """What follows each text, in order; of a chat model its answer to each."""
        if self.chat:
            asked = [[{"role": "user", "content": text}] for text in texts]
            return [
                {"generated": answer(self.model, self.tokenizer, messages, self.tokens, self.seed)[0]}
                for messages in asked
            ]
        return [{"generated": generate(self.model, self.tokenizer, text, self.tokens, self.seed)} for text in texts]


class TextClassifier:
    """A run's exported text classifier, in fp32 as `transformers.pipeline` would run it.

    Raises:
        ConfigError: the run has no finished model, or its labels are not the record's.
    """

    added: tuple[str, ...]

    def __init__(self, run: Path) -> None:
        record = _completed(run)
        if record["task"] != "text-classification":
            raise ConfigError(
                f"{run} is a {record['task']} run, which predict doesn't know.",
                f"Its model is plain transformers: {run}/model",
            )
        self.text_column = record["config"].get("data", {}).get("text")
        self.tokenizer, self.model, self.labels = load_exported(run, record, "AutoModelForSequenceClassification")
        self.second = {"text_pair": record["config"].get("data", {}).get("text_pair")}
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
            _ListRows({name: encoded[name] for name in encoded}),
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


class _ListRows:
    def __init__(self, columns: dict[str, list[list[int]]]) -> None:
        self.columns = columns
        self.lengths = np.array([len(ids) for ids in columns["input_ids"]])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [{name: np.asarray(some[key.index]) for name, some in self.columns.items()} for key in keys]
