"""`finetune calibrate`, `risk-coverage` and `data leaks --run` on one short real run with rows that leak."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from sklearn.metrics import log_loss

from finetune.config import TextClassificationData
from finetune.data.loader import load_data

pytestmark = pytest.mark.integration
LEAKED = 12


def finetune(folder: Path, *arguments: str, status: int = 0) -> str:
    program = "from finetune.cli import console; console()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `one` on 300 messages, of whose 100 test rows 12 stand in train with a word more."""
    folder = tmp_path_factory.mktemp("trust")
    rows = load_data(TextClassificationData(source="sms_spam"), {"text": None, "label": None}).splits["train"]
    texts = [(text, label) for text, label in zip(rows["text"], rows["label"], strict=True) if len(text.split()) > 20]
    splits = {"train": texts[:200], "test": [(f"{text} ok", label) for text, label in texts[:LEAKED]] + texts[200:288]}
    (folder / "sms").mkdir()
    for split, some in splits.items():
        with (folder / "sms" / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *((text, ("ham", "spam")[label]) for text, label in some)])
    flags = ("--set", "train.max_updates=4", "--set", "data.max_tokens=16", "--set", "objective.baselines=false")
    finetune(folder, "run", "bert_cls", "--data", "sms", "--output", "one", *flags)
    return folder


def test_calibrate_says_and_keeps_what_scikit_learn_finds(run: Path) -> None:
    text = finetune(run, "calibrate", "one")
    kept = json.loads((run / "one" / "calibration.json").read_text("utf-8"))
    assert f"temperature {kept['temperature']:.3f}, fitted on {kept['validation_rows']} validation rows" in text
    table = pyarrow.parquet.read_table(run / "one" / "predictions.parquet").to_pydict()
    p = np.array(table["probabilities"], dtype=np.float64)
    assert kept["log_loss"]["before"]["value"] == pytest.approx(log_loss(table["label"], p, labels=["ham", "spam"]))
    scaled = p ** (1 / kept["temperature"])
    scaled /= scaled.sum(axis=1, keepdims=True)
    after = log_loss(table["label"], scaled, labels=["ham", "spam"])
    assert kept["log_loss"]["after"]["value"] == pytest.approx(after)
    record = json.loads((run / "one" / "run.json").read_text("utf-8"))
    assert kept["ece"]["before"] == pytest.approx(record["metrics"]["test"]["ece"])
    assert (run / "one" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_risk_coverage_ends_with_the_error_of_all_rows(run: Path) -> None:
    text = finetune(run, "risk-coverage", "one")
    record = json.loads((run / "one" / "run.json").read_text("utf-8"))
    wrong = 1 - record["metrics"]["test"]["accuracy"]["value"]
    whole = next(line for line in text.splitlines() if line.startswith("100%"))
    assert whole.split()[2:4] == ["100.0%", f"{wrong:.3f}"]
    assert "AURC" in text
    assert (run / "one" / "risk_coverage.png").is_file()


def test_a_run_without_validation_answers_is_one_clear_error(run: Path) -> None:
    kept = run / "one" / "predictions_valid.parquet"
    kept.rename(run / "elsewhere")
    try:
        assert "predictions_valid.parquet is not there" in finetune(run, "calibrate", "one", status=2)
    finally:
        (run / "elsewhere").rename(kept)


def test_the_score_with_and_without_leaked_rows(run: Path) -> None:
    text = finetune(run, "data", "leaks", "sms", "--run", "one")
    rows = {
        line[:20].strip(): int(line.split("]")[1].split()[0])
        for line in text.splitlines()
        if " rows" in line and "]" in line
    }
    assert rows == {"all test rows": 100, "without leaked rows": 100 - LEAKED, "leaked rows alone": LEAKED}
    assert "trained on sms, not on sms_spam" in finetune(run, "data", "leaks", "sms_spam", "--run", "one", status=2)
