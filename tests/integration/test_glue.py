"""GLUE's own files, read by the recipes that are for them: published counts, and the metric that each is judged by."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from finetune.bench.table import tables_folder
from finetune.data.loader import LoadedData, load_data
from finetune.evaluation.judge import ClassificationJudge
from finetune.recipe import load_recipe, override

DATA = Path(os.environ.get("FINETUNE_DATA", "")) / "glue"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not DATA.is_dir(), reason="FINETUNE_DATA names no folder with glue"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))


def shares(data: LoadedData, split: str) -> dict[str, int]:
    counts = np.bincount(data.splits[split]["label"][:], minlength=len(data.labels))
    return dict(zip(data.labels, counts.tolist(), strict=True))


def test_cola_by_its_card_and_matthews_correlation() -> None:
    loaded = load_recipe("bert_cls")
    override(loaded, [f"data.source={tables_folder() / 'cola.md'}", "objective.best_metric=mcc"])
    data = load_data(loaded.recipe.data, {"text": None, "label": None})
    assert len(data.splits["train"]) + len(data.splits["valid"]) == 8551
    assert shares(data, "test") == {"unacceptable": 322, "acceptable": 721}
    assert "The sailors rode the breeze clear of the rocks." in data.splits["test"]["text"][:3]
    labels = data.splits["test"]["label"][:]
    judge = ClassificationJudge({"test": labels}, data.labels, 0, loaded.recipe.objective.best_metric)
    always = np.tile([0.1, 0.9], (len(labels), 1))
    assert judge.quick("test", always)["mcc"] == 0.0  # what accuracy calls 0.69
    assert judge.quick("test", np.eye(2)[labels])["mcc"] == 1.0


def test_rte_as_a_folder_of_pairs() -> None:
    loaded = load_recipe("bert_pair")
    override(loaded, [f"data.source={DATA / 'RTE'}"])
    data = load_data(loaded.recipe.data, {"text": None, "text_pair": None, "label": None})
    assert len(data.splits["train"]) + len(data.splits["valid"]) == 2490
    assert shares(data, "test") == {"entailment": 146, "not_entailment": 131}
    assert any("test.tsv" in note for note in data.notes)
