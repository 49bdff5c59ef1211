"""Pairs, entities and masked language models on real data: whole runs, two processes by a copy, predictions."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from finetune.cli import main
from finetune.data.loader import load_data
from finetune.language_settings import PlainTextData
from tests.forks import forks
from tests.integration.test_launch_line import ROOT, environment, finetune, fresh_accelerate, losses, record_of

__all__ = ["fresh_accelerate"]  # a fixture
pytestmark = pytest.mark.integration

DATA = Path(os.environ.get("FINETUNE_DATA", ""))
NEEDS_DATA = pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="FINETUNE_DATA names no folder with glue, wnut17")
EXACT = ["train.precision=fp32", "model.dropout=0", "train.max_updates=4", "train.batch_size=10", "train.threads=1"]
EXACT += ["train.micro_batch_size=5"]


def sts(folder: Path) -> list[str]:
    """The first rows of STS-B as GLUE has them: its test file comes without scores."""
    (folder / "sts").mkdir()
    for name, rows in (("train", 120), ("dev", 60), ("test", 20)):
        lines = (DATA / "glue" / "STS-B" / f"{name}.tsv").read_text("utf-8").splitlines(keepends=True)
        (folder / "sts" / f"{name}.tsv").write_text("".join(lines[: rows + 1]), "utf-8")
    return ["--data", str(folder / "sts"), "--set", "objective.kind=regression"]


def wnut(folder: Path) -> list[str]:
    """The first sentences of WNUT 17, in windows so short that some need two."""
    (folder / "wnut").mkdir()
    names = {"wnut17train.conll": "train", "emerging.dev.conll": "dev", "emerging.test.annotated": "test"}
    for source, name in names.items():
        lines = (DATA / "wnut17" / source).read_text("utf-8").splitlines(keepends=True)
        (folder / "wnut" / f"{name}.conll").write_text("".join(lines[:1800]), "utf-8")
    settings = ["data.max_tokens=32", "data.overlap_tokens=8", "train.lr=1e-3"]
    return ["--data", str(folder / "wnut"), *(part for setting in settings for part in ("--set", setting))]


def tales(folder: Path) -> list[str]:
    """Beginnings of twenty real tales."""
    (folder / "tales").mkdir()
    data = load_data(PlainTextData(source="grimm_tales"), {"text": None})
    for row in data.splits["train"].select(range(20)):
        (folder / "tales" / f"{row['id'].replace('/', '-')}.txt").write_text(row["text"][:900], encoding="utf-8")
    return ["--data", str(folder / "tales"), "--set", "data.block_tokens=64"]


RECIPES: dict[str, Any] = {"bert_pair": sts, "bert_ner": wnut, "bert_mlm": tales}
NAMES = [pytest.param(name, marks=[] if name == "bert_mlm" else [NEEDS_DATA]) for name in RECIPES]


class Runs:
    """One run of each recipe by one process, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arguments: dict[str, list[str]] = {}

    def __call__(self, recipe: str) -> Path:
        run = self.folder / recipe
        if recipe not in self.arguments:
            exact = [part for setting in EXACT for part in ("--set", setting)]
            self.arguments[recipe] = [*RECIPES[recipe](self.folder), *exact]
            done = finetune("run", recipe, *self.arguments[recipe], "--output", run)
            assert done.returncode == 0, done.stderr
            assert "fine-tuned" in done.stdout
        return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@NEEDS_DATA
def test_a_copy_run_by_two_processes_finds_the_same_entities(runs: Runs, tmp_path: Path) -> None:
    """To its record; the losses of all recipes are the matrix's (test_every_bert_recipe)."""
    one, two = runs("bert_ner"), tmp_path / "two"
    assert finetune("cp", "bert_ner", tmp_path / "mine.py").returncode == 0
    arguments = ["run", str(tmp_path / "mine.py"), *runs.arguments["bert_ner"], "--output", str(two)]
    for done in forks().start(arguments, ROOT, environment(PYTHONPATH=str(ROOT)), world=2).wait_all():
        assert done.returncode == 0, done.stderr
    first, second = record_of(one), record_of(two)
    assert (first["hardware"]["processes"], second["hardware"]["processes"]) == (1, 2)
    for ours, theirs in zip(losses(one), losses(two), strict=True):
        assert math.isclose(ours, theirs, rel_tol=1e-5)
    for part in ("baselines", "gains"):
        for ours, theirs in zip(numbers(first[part]), numbers(second[part]), strict=True):
            # Numbers that are no counts carry the rounding of the weights.
            assert math.isclose(ours, theirs, rel_tol=1e-4, abs_tol=1e-5), part
    tables = [pyarrow.parquet.read_table(run / "predictions.parquet") for run in (one, two)]
    assert tables[0]["id"] == tables[1]["id"]
    assert first["metrics"] == second["metrics"]
    assert tables[0]["prediction"] == tables[1]["prediction"]


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [number for key in sorted(tree) for number in numbers(tree[key])]
    return [float(tree)] if isinstance(tree, int | float) else []


@pytest.mark.parametrize("recipe", NAMES)
def test_card_and_picture_are_there(runs: Runs, recipe: str) -> None:
    run = runs(recipe)
    card = (run / "README.md").read_text("utf-8")
    main = {"bert_pair": "pearson", "bert_ner": "f1", "bert_mlm": "masked_perplexity"}[recipe]
    assert f"{record_of(run)['metrics']['test'][main]['value']:.3f}" in card
    assert (run / "result.png").stat().st_size > 10_000


@NEEDS_DATA
@pytest.mark.usefixtures("fresh_accelerate")
def test_predict_scores_pairs(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    run = runs("bert_pair")
    assert main(["predict", str(run), "--text", "A man sings.", "--text-pair", "Someone is singing."]) == 0
    score = json.loads(capsys.readouterr().out)["prediction"]
    (theirs,) = pipeline("text-classification", str(run / "model"))(
        [{"text": "A man sings.", "text_pair": "Someone is singing."}]
    )
    assert score == pytest.approx(theirs["score"], abs=1e-5)
    test = runs.folder / "sts" / "dev.tsv"
    assert main(["predict", str(run), "--file", str(test), "--out", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        predicted = [float(row["prediction"]) for row in csv.DictReader(file)]
    recorded = pyarrow.parquet.read_table(run / "predictions.parquet")["prediction"].to_pylist()
    assert np.allclose(predicted, recorded, atol=1e-4)


@NEEDS_DATA
@pytest.mark.usefixtures("fresh_accelerate")
def test_predict_finds_entities(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    run = runs("bert_ner")
    text = "Ann saw the Empire State Building in London, with @bob."
    assert main(["predict", str(run), "--text", text]) == 0
    entities = json.loads(capsys.readouterr().out)["entities"]
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities)
    pipeline("token-classification", str(run / "model"), aggregation_strategy="first")(text)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert main(["predict", str(run), "--file", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["entities"] == entities


@pytest.mark.usefixtures("fresh_accelerate")
def test_predict_fills_masks(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    run = runs("bert_mlm")
    texts = ["The king had a [MASK].", "[MASK] upon a time there was a little [MASK] who lived in the forest."]
    fill = pipeline("fill-mask", str(run / "model"), top_k=5)
    theirs = [fill(texts[0]), *fill(texts[1])]  # of two masks a list each
    (tmp_path / "in.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    assert main(["predict", str(run), "--file", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = [json.loads(row["masks"]) for row in csv.DictReader(file)]
    assert [len(masks) for masks in rows] == [1, 2]
    for mask, expected in zip([mask for masks in rows for mask in masks], theirs, strict=True):
        assert [filled["token"] for filled in mask["tokens"]] == [filled["token_str"] for filled in expected]
        found = [filled["probability"] for filled in mask["tokens"]]
        assert found == pytest.approx([filled["score"] for filled in expected], abs=2e-6)
    capsys.readouterr()
    assert main(["predict", str(run), "--text", texts[1]]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == texts[1]
    assert [texts[1][mask["start"] : mask["end"]] for mask in answer["masks"]] == ["[MASK]", "[MASK]"]
    for text, problem in (
        ("The king slept.", "has no [MASK] to fill"),
        ("[MASK] " * 80, "the model was trained on 64"),
    ):
        assert main(["predict", str(run), "--text", text]) == 2
        assert problem in capsys.readouterr().err


def test_bert_cls_starts_from_what_was_pretrained_further(runs: Runs) -> None:
    import torch
    from safetensors.torch import load_file

    from finetune.recipe import load_recipe, override

    model = runs("bert_mlm") / "model"
    loaded = load_recipe("bert_cls")
    override(loaded, [f"model.name={model}", "data.source=movie_snippets"])
    task = loaded.build()
    weights = load_file(model / "model.safetensors")
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("bert.")}
    state = task.model.state_dict()
    assert len(encoder) > 90
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.items())
    assert any("classifier.weight" in note for note in task.notes)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("recipe", ["bert_pair", "bert_ner"])
def test_without_data_it_names_sources_and_writes_nothing(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", recipe]) == 2
    assert "no data of its own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
