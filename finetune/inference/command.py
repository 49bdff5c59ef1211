"""`finetune predict`: a run's exported model on new rows, through nothing but the exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, DataError
from finetune.inference.exported import Predictor, check_files, completed
from finetune.inference.files import check_out, read_pairs, read_rows, write_rows


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

    A language model adds `generated`, a tagger `entities`, a masked language model `masks`, regression `prediction`
    alone.

    Args:
        pairs, pair_column: the second texts, or their column, for a run on pairs of texts.
        images: paths of images, instead of texts; a file's rows are paths, relative to the file, where the run is one
            of images.
        tokens: most tokens that a language model writes after each text; None takes its default.

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
    record = completed(Path(run))
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
    check_files(Path(run), record)
    predictor = _predictor(Path(run), record, Path(file).parent if file is not None else Path(), tokens)
    if file is None or out is None:
        kind = "image" if of_images else "text"
        given = [{kind: value} for value in (images if of_images else texts) or []]
        if paired:
            given = [{**row, "text_pair": pair} for row, pair in zip(given, pairs or [], strict=True)]
        for row, prediction in zip(given, predictor(_inputs(list(row.values()) for row in given)), strict=True):
            print(json.dumps({**row, **prediction}, ensure_ascii=False))
        return 0
    if paired:
        trained_on = {role: record["config"]["data"][role] for role in ("text", "text_pair")}
        columns, names = read_pairs(Path(file), {"text": column, "text_pair": pair_column}, trained_on)
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


def _predictor(run: Path, record: dict[str, Any], folder: Path, tokens: int | None) -> Predictor:
    """The predictor of a run's kind; each in a module of its own, because it brings its own libraries.

    Raises:
        ConfigError: no predictor is of that kind, or the model can't be loaded.
    """
    kind = record["task"]
    if kind == "image-classification":
        from finetune.inference.images import ImageClassifier

        return ImageClassifier(run, record, folder)
    if kind == "text-generation":
        from finetune.inference.generation import TextGenerator

        return TextGenerator(run, record, tokens)
    if kind == "token-classification":
        from finetune.inference.entities import EntityTagger

        return EntityTagger(run, record)
    if kind == "fill-mask":
        from finetune.inference.masks import MaskFiller

        return MaskFiller(run, record)
    if kind == "text-classification":
        from finetune.inference.texts import PairClassifier, TextClassifier

        return (PairClassifier if "text_pair" in record["config"].get("data", {}) else TextClassifier)(run, record)
    raise ConfigError(
        f"{run} is a {kind} run, which predict doesn't know.", f"Its model is plain transformers: {run}/model"
    )


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
