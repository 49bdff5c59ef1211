"""Rows of a table that train no network: majority, TF-IDF, probes. Run as a process of its own, for time and memory.

python -m finetune.bench.frozen REQUEST.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.errors import ConfigError, FinetuneError
from finetune.evaluation.stored import Stored

if TYPE_CHECKING:
    from finetune.data.loader import LoadedData
    from finetune.recipe import LoadedRecipe

MTEB_SEED, MTEB_ITERATIONS = 42, 100


def measure(
    loaded: LoadedRecipe, method: str, shots: int | None, seed: int
) -> tuple[LoadedData, Stored, dict[str, Any]]:
    """Data, answers on the test rows, and facts for the record: what was trained, its parameters, seconds.

    Raises:
        ConfigError: a task without classes.
    """
    from finetune.data.loader import load_data
    from finetune.data.shots import draw_shots
    from finetune.evaluation.baselines import majority_class, probe, tfidf_logreg
    from finetune.run_data import roles_of

    settings = loaded.recipe.data
    data = load_data(settings, roles_of(settings))
    data = draw_shots(data, getattr(settings, "shots", None), seed)
    if not data.labels:
        raise ConfigError(f"method={method} needs classes, which {data.name} has none of.", "Take another recipe.")
    train, test, classes = data.splits["train"], data.splits["test"], len(data.labels)
    labels = np.asarray(train["label"])
    texts = [name for name in train.column_names if name not in ("id", "label")]
    started = time.monotonic()
    parameters = 0
    if method == "majority":
        outputs = majority_class(labels, len(test), classes).outputs
    elif method in ("tfidf", "tfidf_words"):
        rows, given = _joined(train, texts), labels
        if method == "tfidf_words":  # published tables train on all that is not test; nothing is chosen on valid here
            rows = [*rows, *_joined(data.splits["valid"], texts)]
            given = np.concatenate([labels, np.asarray(data.splits["valid"]["label"])])
        outputs = tfidf_logreg(
            rows, given, _joined(test, texts), classes=classes, seed=seed, unigram=method == "tfidf_words"
        ).outputs
    else:
        chosen = np.arange(len(labels)) if shots is None else kshot_rows(labels, shots, seed)
        train_RD, test_RD = (_features(loaded, split, texts) for split in (train.select(chosen), test))
        if shots is None:
            outputs = probe(train_RD, labels[chosen], test_RD, classes=classes, seed=seed).outputs
        else:
            outputs = kshot_outputs(train_RD, labels[chosen], test_RD, classes)
        parameters = (train_RD.shape[1] + 1) * classes
    answers = np.asarray(outputs).argmax(axis=1)
    stored = Stored("classes", tuple(map(str, test["id"])), np.asarray(test["label"]), answers, data.labels)
    return data, stored, {"trainable": parameters, "train_s": round(time.monotonic() - started, 2)}


def kshot_rows(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """A sample of `shots` rows a class as MTEB draws it; `draw` counts from 0.

    One list of row indices is shuffled once more for each draw, each time by a new RandomState(42), and walked from its
    start (mteb/abstasks/AbsTaskClassification.py, _undersample_data). A class with fewer rows gives all of them.
    """
    order = np.arange(len(labels))
    for _ in range(draw + 1):
        np.random.RandomState(MTEB_SEED).shuffle(order)
    left = dict.fromkeys(np.unique(labels).tolist(), shots)
    chosen = []
    for row in order:
        if left[int(labels[row])]:
            left[int(labels[row])] -= 1
            chosen.append(row)
    return np.array(chosen)


def kshot_outputs(train_RD: np.ndarray, labels: np.ndarray, test_RD: np.ndarray, classes: int) -> np.ndarray:
    """MTEB's classifier on embeddings of unit length: logistic regression, 100 iterations. [rows, classes]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    model = LogisticRegression(random_state=MTEB_SEED, max_iter=MTEB_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping there is the protocol
        model.fit(normalize(train_RD), labels)
    outputs = np.zeros((len(test_RD), classes))
    outputs[:, model.classes_] = model.predict_proba(normalize(test_RD))
    return outputs


def _joined(split: Any, texts: list[str]) -> list[str]:
    return [" ".join(row) for row in zip(*(split[name] for name in texts), strict=True)]


def _features(loaded: LoadedRecipe, split: Any, texts: list[str]) -> np.ndarray:
    """Mean-pooled last hidden states of the pretrained encoder in fp32, [rows, width]."""
    from accelerate import Accelerator
    from transformers import AutoModel

    from finetune.data.sources import resolve_model
    from finetune.data.tokens import pad_tokens, tokenize
    from finetune.evaluation.predict import mean_pooled, predict_rows
    from finetune.hardware import has_accelerator, use_threads
    from finetune.models import load_pretrained, load_tokenizer

    recipe: Any = loaded.recipe
    use_threads(recipe.train.threads)
    files = resolve_model(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(files)
    model, _ = load_pretrained(AutoModel, files)
    accelerator = Accelerator(cpu=not has_accelerator())
    return predict_rows(
        model.to(accelerator.device),
        tokenize(split, tokenizer, recipe.data.max_tokens, texts=texts, label=None),
        lambda some: pad_tokens(some, tokenizer.pad_token_id),
        lambda model, batch: mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"]),
        accelerator,
        "features",
    )


def main(request_file: str, answer_file: str) -> int:
    """Answer a request: {"options", "method", "shots", "seed"}."""
    from finetune.bench.jobs import answers_of
    from finetune.hardware import describe, peak_rss_mb
    from finetune.options import RunOptions, resolve
    from finetune.record import commit, versions

    request = json.loads(Path(request_file).read_text("utf-8"))
    try:
        loaded = resolve(RunOptions(**request["options"]))
        data, stored, facts = measure(loaded, request["method"], request["shots"], request["seed"])
    except FinetuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    answer = {
        "recipe": {"name": loaded.name, "origin": loaded.origin, "hash": loaded.sha256},
        "config": {"method": request["method"], "shots": request["shots"], **loaded.resolved()},
        "data": {
            "card": data.name,
            "sha256": data.sha256,
            "rows": {name: len(rows) for name, rows in data.splits.items()},
        },
        "versions": versions(),
        "commit": commit(),
        "hardware": describe(1, loaded.recipe.train.threads),  # type: ignore[arg-type]
        "precision": "fp32",
        "valid_score": None,
        "peak_rss_mb": peak_rss_mb(),
        "adapter_bytes": None,
        **facts,
        "test": answers_of(stored),
    }
    Path(answer_file).write_text(json.dumps(answer), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
