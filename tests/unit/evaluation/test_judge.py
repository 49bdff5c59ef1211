"""The judge of classifiers says what the metrics say, split by split, and its columns are the rows' own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finetune.evaluation.judge import ClassificationJudge
from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.paired import accuracy_gain

pytestmark = pytest.mark.unit

NAMES = ("no", "yes", "maybe")
GENERATOR = np.random.default_rng(0)
LABELS = {"valid": GENERATOR.integers(0, 3, 40), "test": GENERATOR.integers(0, 3, 70)}
OUTPUTS = {split: GENERATOR.dirichlet(np.ones(3), len(rows)).astype(np.float32) for split, rows in LABELS.items()}
JUDGE = ClassificationJudge(LABELS, NAMES, seed=3)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_it_says_what_the_metrics_say(split: str) -> None:
    report = classification_metrics(OUTPUTS[split], LABELS[split], NAMES, seed=3)
    assert JUDGE.judge(split, OUTPUTS[split]) == report.as_dict()
    quick = JUDGE.quick(split, OUTPUTS[split])
    assert set(quick) == {"loss", "accuracy", "macro_f1"}
    assert quick["accuracy"] == report.values()["accuracy"] == (OUTPUTS[split].argmax(1) == LABELS[split]).mean()
    assert quick["macro_f1"] == report.values()["macro_f1"]
    assert JUDGE.best_metric in quick


def test_the_kept_checkpoint_can_be_best_at_matthews_correlation() -> None:
    judge = ClassificationJudge(LABELS, NAMES, 3, best_metric="mcc")
    report = classification_metrics(OUTPUTS["test"], LABELS["test"], NAMES, seed=3)
    assert judge.quick("test", OUTPUTS["test"])[judge.best_metric] == report.values()["mcc"]


def test_the_loss_is_the_mean_negative_log_likelihood() -> None:
    from sklearn.metrics import log_loss

    wide = OUTPUTS["test"].astype(np.float64)
    expected = log_loss(LABELS["test"], wide / wide.sum(axis=1, keepdims=True), labels=[0, 1, 2])
    assert JUDGE.quick("test", OUTPUTS["test"])["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_probability_of_zero_costs_much_but_is_finite() -> None:
    sure = np.eye(3, dtype=np.float32)[(LABELS["test"] + 1) % 3]
    assert JUDGE.quick("test", sure)["loss"] == pytest.approx(-np.log(1e-12))


def test_the_gain_is_paired_and_has_a_sign() -> None:
    right = np.eye(3)[LABELS["test"]]
    gain = JUDGE.gain("test", right, OUTPUTS["test"])
    baseline_right = OUTPUTS["test"].argmax(1) == LABELS["test"]
    assert gain == accuracy_gain(np.ones(70, bool), baseline_right, 3).as_dict()
    assert gain["value"] == pytest.approx(1 - baseline_right.mean())
    assert JUDGE.gain("test", OUTPUTS["test"], right)["value"] == pytest.approx(-gain["value"])


def test_columns_name_label_and_prediction_of_each_row() -> None:
    columns = JUDGE.columns("test", OUTPUTS["test"])
    assert columns["label"] == [NAMES[index] for index in LABELS["test"]]
    assert columns["prediction"] == [NAMES[int(np.argmax(row))] for row in OUTPUTS["test"]]
    assert np.array_equal(np.stack(columns["probabilities"]), OUTPUTS["test"])


def test_what_trains_does_not_wait_for_scikit_learn() -> None:
    """It takes 0.7 s: a run without baselines needs it when it judges first."""
    code = (
        "import sys\n"
        "import finetune.evaluation.entities, finetune.evaluation.judge, finetune.evaluation.language\n"
        "import finetune.evaluation.masked, finetune.evaluation.regression\n"
        "import finetune.contrastive, finetune.image_classification, finetune.language_modeling\n"
        "import finetune.masked_language_modeling, finetune.sentence_classification, finetune.text_classification\n"
        "import finetune.text_pairs, finetune.token_classification, finetune.results, finetune.trainer\n"
        "print({'sklearn', 'scipy.stats'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
