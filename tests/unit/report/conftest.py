"""A run record as run.json holds it, for the report tests."""

import math
from typing import Any

import pytest


def interval(value: float, half: float, n: int = 2121) -> dict[str, float | int]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


@pytest.fixture
def record() -> dict[str, Any]:
    scores = {
        "fine-tuned": 0.8421,
        "majority class": 0.5092,
        "TF-IDF + logistic regression": 0.7813,
        "frozen-encoder probe": 0.8034,
    }
    tables = {
        name: {
            "accuracy": interval(value, 0.016),
            "macro_f1": interval(value - 0.001, 0.016),
            "mcc": interval(2 * value - 1, 0.03),
            "ece": interval(0.031, 0.01),
        }
        for name, value in scores.items()
    }  # fmt: skip
    metrics = tables.pop("fine-tuned")
    return {
        "status": "completed",
        "recipe": {"name": "bert_cls", "origin": "recipes/bert_cls.py", "hash": "ab12"},
        "config": {
            "model": {"name": "pypi:some-wheel==0.1.0/model#sha256=00", "revision": None, "dropout": None},
            "data": {"source": "movie_snippets", "max_tokens": 128},
            "train": {"lr": 5e-5, "epochs": 3.0, "seed": 0},
        },
        "data": {
            "card": "movie_snippets",
            "sha256": "d" * 64,
            "rows": {"train": 7436, "valid": 1045, "test": 2121},
            "labels": ["negative", "positive"],
            "notes": ["3 rows with rating 0 dropped"],
        },
        "model": {
            "name": "pypi:some-wheel==0.1.0/model#sha256=00",
            "revision": None,
            "sha256": "e" * 64,
            "parameters": 22_714_000,
            "trainable": 22_714_000,
        },
        "versions": {"torch": "2.14.1", "transformers": "5.23.0", "finetune": "0.1.0"},
        "commit": "0123abc",
        "hardware": {"cpu": "a processor", "cores": 2, "gpus": [], "processes": 1, "threads": 2},
        "precision": "bf16",
        "metrics": {"valid": metrics, "test": metrics},
        "baselines": tables,
        "gains": {
            name: {"metric": "accuracy", "value": 0.8421 - scores[name], "low": 0.8421 - scores[name] - 0.014,
                   "high": 0.8421 - scores[name] + 0.014, "n": 2121, "p": 1e-7}
            for name in tables
        },
        "per_class": {
            "test": [
                {"label": "negative", "precision": 0.84, "recall": 0.85, "f1": 0.845, "support": 1080},
                {"label": "positive", "precision": 0.85, "recall": 0.84, "f1": 0.845, "support": 1041},
            ]
        },
        "confusion": {"test": [[918, 162], [173, 868]]},
        "timing": {"load_s": 3.1, "train_s": 92.0, "eval_s": 4.0, "examples_per_s": 242.0, "tokens_per_s": 6100.0},
        "peak_rss_mb": 1200,
        "updates": 699,
        "best_update": 466,
        "seed": 0,
    }  # fmt: skip


@pytest.fixture
def history() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for update in range(1, 700):
        noise = 0.12 * math.sin(update * 12.9898) * math.cos(update * 4.1)
        lines.append({"update": update, "loss": 0.25 + 0.45 * math.exp(-update / 120) + noise, "lr": 5e-5, "rows": 32})
        if update % 233 == 0:
            value = {233: 0.829, 466: 0.846, 699: 0.843}[update]
            lines.append({"update": update, "valid": {"accuracy": value, "macro_f1": value, "mcc": 0.68, "ece": 0.03}})
    return lines
