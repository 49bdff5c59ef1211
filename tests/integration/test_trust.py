"""`finetune calibrate`, `risk-coverage` and `data leaks --run` on one short real run with rows that leak."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import log_loss

from finetune.cli import main
from finetune.config import TextClassificationData
from finetune.data.loader import load_data
from tests.forks import forks

pytestmark = pytest.mark.integration
LEAKED = 12
NAMES = ["negative", "positive"]


@pytest.fixture
def finetune(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command in the run's folder, in this process: to its output, or to its message where it fails."""
    monkeypatch.chdir(run)

    def call(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(arguments) == status
        printed = capsys.readouterr()
        return printed.out if status == 0 else printed.err

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `one` on 288 reviews, of whose 100 test rows 12 stand in train but for a word."""
    folder = tmp_path_factory.mktemp("trust")
    rows = load_data(TextClassificationData(source="movie_snippets"), {"text": None, "label": None}).splits["train"]
    texts = [(text, label) for text, label in zip(rows["text"], rows["label"], strict=True) if len(text.split()) > 20]
    splits = {"train": texts[:200], "test": [(f"{text} ok", label) for text, label in texts[:LEAKED]] + texts[200:288]}
    (folder / "reviews").mkdir()
    for split, some in splits.items():
        with (folder / "reviews" / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *((text, NAMES[label]) for text, label in some)])
    flags = ("--set", "train.max_updates=4", "--set", "data.max_tokens=16", "--set", "objective.baselines=false")
    done = forks().run(["run", "bert_cls", "--data", "reviews", "--output", "one", *flags], folder, os.environ)
    assert done.returncode == 0, done.stderr
    return folder


def test_calibrate_says_and_keeps_what_scikit_learn_finds(run: Path, finetune: Callable[..., str]) -> None:
    text = finetune("calibrate", "one")
    kept = json.loads((run / "one" / "calibration.json").read_text("utf-8"))
    assert f"temperature {kept['temperature']:.3f}, fitted on {kept['validation_rows']} validation rows" in text
    table = pyarrow.parquet.read_table(run / "one" / "predictions.parquet").to_pydict()
    p = np.array(table["probabilities"], dtype=np.float64)
    p /= p.sum(axis=1, keepdims=True)  # fp32, and scikit-learn wants 1 to more digits
    assert kept["log_loss"]["before"]["value"] == pytest.approx(log_loss(table["label"], p, labels=NAMES))
    scaled = p ** (1 / kept["temperature"])
    scaled /= scaled.sum(axis=1, keepdims=True)
    after = log_loss(table["label"], scaled, labels=NAMES)
    assert kept["log_loss"]["after"]["value"] == pytest.approx(after)
    record = json.loads((run / "one" / "run.json").read_text("utf-8"))
    assert kept["ece"]["before"] == pytest.approx(record["metrics"]["test"]["ece"])
    assert (run / "one" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_risk_coverage_ends_with_the_error_of_all_rows(run: Path, finetune: Callable[..., str]) -> None:
    text = finetune("risk-coverage", "one")
    record = json.loads((run / "one" / "run.json").read_text("utf-8"))
    wrong = 1 - record["metrics"]["test"]["accuracy"]["value"]
    whole = next(line for line in text.splitlines() if line.startswith("100%"))
    assert whole.split()[2:4] == ["100.0%", f"{wrong:.3f}"]
    assert "AURC" in text
    assert (run / "one" / "risk_coverage.png").is_file()


def test_a_run_without_validation_answers_is_one_clear_error(run: Path, finetune: Callable[..., str]) -> None:
    kept = run / "one" / "predictions_valid.parquet"
    kept.rename(run / "elsewhere")
    try:
        assert "predictions_valid.parquet is not there" in finetune("calibrate", "one", status=2)
    finally:
        (run / "elsewhere").rename(kept)


def test_the_score_with_and_without_leaked_rows(run: Path, finetune: Callable[..., str]) -> None:
    text = finetune("data", "leaks", "reviews", "--run", "one")
    rows = {
        line[:20].strip(): int(line.split("]")[1].split()[0])
        for line in text.splitlines()
        if " rows" in line and "]" in line
    }
    assert rows == {"all test rows": 100, "without leaked rows": 100 - LEAKED, "leaked rows alone": LEAKED}
    assert "trained on reviews, not on sms_spam" in finetune("data", "leaks", "sms_spam", "--run", "one", status=2)
