"""The launch line as a user types it: one process and two, what it leaves, interrupted, resumed, and refused."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import pytest

from tests.forks import forks
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LINE = "accelerate launch finetune/run.py --recipe bert_cls"
# What really starts two processes on a CPU: see the README.
TWO = "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port {port} finetune/run.py"


def environment(**more: str) -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", **more}


def launch(line: str, *arguments: object, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of the README, with arguments added."""
    command = [*line.split(), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=600)


def finetune(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command of the README, as a fork of an interpreter that has imported everything."""
    return forks().run(list(map(str, arguments)), folder, environment(PYTHONPATH=str(ROOT)))


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text("utf-8"))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.csv", rows=400)


@pytest.fixture(scope="module")
def small(reviews: Path) -> list[str]:
    """Settings of a run of seconds on real rows."""
    return ["--data", str(reviews), "--set", "data.max_tokens=48", "--set", "train.max_updates=12"]


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    done = launch(LINE, *small, "--output", run, "--set", "train.trackers=tensorboard")
    assert done.returncode == 0, done.stderr
    assert "fine-tuned" in done.stdout
    return run


def test_a_run_leaves_its_record_model_predictions_and_history(finished: Path) -> None:
    record = record_of(finished)
    assert record["status"] == "completed"
    assert set(record["recipe"]) == {"name", "origin", "hash"}
    assert set(record["metrics"]) == {"valid", "test"}
    accuracy = record["metrics"]["test"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["n"] == record["data"]["rows"]["test"]
    assert set(record["baselines"]) == {"majority class", "TF-IDF + logistic regression", "frozen-encoder probe"}
    assert {"load_s", "train_s", "eval_s", "examples_per_s", "tokens_per_s"} <= set(record["timing"])
    for key in ("config", "versions", "commit", "hardware", "precision", "peak_rss_mb", "updates", "seed"):
        assert key in record
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    updates = [line for line in history if "loss" in line]
    assert [line["update"] for line in updates] == list(range(1, 13))
    assert set(updates[0]) == {"update", "loss", "lr", "grad_norm", "rows"}
    assert updates[-1]["rows"] == record["data"]["rows"]["train"] or updates[-1]["rows"] <= 12 * 32
    card = (finished / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert f"{accuracy['value']:.3f}" in card
    assert (finished / "result.png").stat().st_size > 10_000


def test_all_physical_cores_are_used_though_the_launcher_says_one_thread(finished: Path) -> None:
    cores = psutil.cpu_count(logical=False)
    assert record_of(finished)["hardware"]["threads"] == min(cores, len(os.sched_getaffinity(0)))


def test_predictions_give_the_recorded_accuracy(finished: Path) -> None:
    table = pyarrow.parquet.read_table(finished / "predictions.parquet").to_pydict()
    assert set(table) == {"id", "label", "prediction", "probabilities"}
    right = np.mean(
        [label == prediction for label, prediction in zip(table["label"], table["prediction"], strict=True)]
    )
    assert right == pytest.approx(record_of(finished)["metrics"]["test"]["accuracy"]["value"], abs=1e-12)
    assert np.allclose(np.array(table["probabilities"]).sum(axis=1), 1.0, atol=1e-5)


def test_tensorboard_gets_the_losses(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (finished / "trackers").rglob("events.out.tfevents.*.0")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    logged = [event.value for event in accumulator.Scalars("train/loss")]
    assert logged == pytest.approx(losses(finished), rel=1e-6)


PIPELINE = """
import json, sys
import transformers
model, text = sys.argv[1:]
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
classify = transformers.pipeline("text-classification", model=model, top_k=None)
tokens = classify.tokenizer([text], return_tensors="pt")
logits = classify.model(**tokens).logits
print(json.dumps({"scores": classify([text]), "logits": logits.tolist()}))
"""


def test_a_stranger_loads_the_model_and_gets_the_same_logits_to_the_bit(finished: Path, tmp_path: Path) -> None:
    import torch

    from finetune.data.tokens import pad_tokens
    from finetune.inference.texts import TextClassifier

    text = "A gorgeous, witty, seductive movie."
    done = subprocess.run(
        [sys.executable, "-I", "-c", PIPELINE, str(finished / "model"), text],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stranger = json.loads(done.stdout)
    classifier = TextClassifier(finished, record_of(finished))
    batch = pad_tokens([{"input_ids": classifier.tokenizer(text)["input_ids"]}], classifier.tokenizer.pad_token_id)
    with torch.inference_mode():
        ours = classifier.model(**batch).logits
    assert ours.tolist() == stranger["logits"]
    (scores,) = stranger["scores"]
    assert {score["label"] for score in scores} == {"negative", "positive"}


def test_predict_text_and_file(finished: Path, reviews: Path, tmp_path: Path) -> None:
    done = finetune("predict", finished, "--text", "A gorgeous, witty, seductive movie.")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prediction"] in ("negative", "positive")
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)
    out = tmp_path / "labelled.csv"
    done = finetune("predict", finished, "--file", reviews, "--out", out)
    assert done.returncode == 0, done.stderr
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with reviews.open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in rows] == [row["text"] for row in csv.DictReader(file)]
    assert set(rows[0]) == {"text", "label", "prediction", "probability"}
    assert finetune("predict", finished, "--file", reviews, "--out", out).returncode == 2


def test_predict_refuses_labels_that_are_not_the_records(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "changed"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints"))
    record = record_of(run)
    record["data"]["labels"].reverse()
    (run / "run.json").write_text(json.dumps(record))
    done = finetune("predict", run, "--text", "Fine.")
    assert done.returncode == 2
    assert "config.json has the labels" in done.stderr


def test_a_copied_recipe_gives_the_same_numbers_to_the_bit(finished: Path, small: list[str], tmp_path: Path) -> None:
    assert finetune("cp", "bert_cls", tmp_path / "mine.py").returncode == 0
    run = tmp_path / "run"
    done = finetune("run", tmp_path / "mine.py", *small, "--output", run, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    copied, original = record_of(run), record_of(finished)
    assert copied["metrics"] == original["metrics"]
    assert copied["baselines"] == original["baselines"]
    assert losses(run) == losses(finished)
    assert copied["recipe"]["hash"] == original["recipe"]["hash"]


def test_an_edited_copy_runs_on_other_data_from_another_folder(reviews: Path, tmp_path: Path) -> None:
    finetune("cp", "bert_cls", tmp_path)
    recipe = tmp_path / "bert_cls.py"
    edited = recipe.read_text().replace('source="movie_snippets"', 'source="mine.tsv", text="body", label="mood"')
    recipe.write_text(edited.replace("epochs=2", "max_updates=2"))
    with reviews.open(newline="", encoding="utf-8") as file, (tmp_path / "mine.tsv").open("w") as out:
        out.write("body\tmood\n")
        out.writelines(f"{row['text']}\t{row['label']}\n" for row in csv.DictReader(file) if "\t" not in row["text"])
    done = finetune("run", "./bert_cls.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "runs" / "latest")
    assert record["data"]["labels"] == ["negative", "positive"]
    assert record["updates"] == 2
    assert "body" in finetune("diff", "./bert_cls.py", folder=tmp_path).stdout


def test_two_processes_equal_one_with_twice_the_micro_batches(small: list[str], tmp_path: Path, free_port: int) -> None:
    exact = [*small, "--set", "train.precision=fp32", "--set", "model.dropout=0", "--set", "objective.baselines=false"]
    exact += ["--set", "objective.class_weights=balanced", "--set", "train.batch_size=20"]
    exact += ["--set", "train.max_updates=4"]
    one = launch(LINE, *exact, "--set", "train.micro_batch_size=5", "--output", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    two = launch(
        TWO.format(port=free_port), "--recipe", "bert_cls", *exact, "--set", "train.micro_batch_size=5",
        "--output", tmp_path / "two", ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    first, second = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (first["hardware"]["processes"], second["hardware"]["processes"]) == (1, 2)
    for ours, theirs in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert math.isclose(ours, theirs, rel_tol=1e-5)
    for name, value in first["metrics"]["test"].items():
        if name != "ece":
            assert second["metrics"]["test"][name] == value
    tables = [pyarrow.parquet.read_table(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert tables[0]["id"] == tables[1]["id"]
    assert tables[0]["prediction"] == tables[1]["prediction"]
    assert "Traceback" not in two.stderr


@pytest.mark.parametrize("flags", ["--cpu --num_processes 2", "--cpu --num_processes=3"])
def test_fewer_processes_than_told_are_refused(small: list[str], tmp_path: Path, flags: str) -> None:
    line = f"accelerate launch {flags} finetune/run.py --recipe bert_cls"
    done = launch(line, *small, "--output", tmp_path / "run")
    assert done.returncode != 0
    assert "it started 1 process" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_bits(
    small: list[str], finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = forks().start(["run", "bert_cls", *small, "--output", str(run)], ROOT, environment())
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.running():
        if (run / "history.jsonl").exists() and len(losses(run)) >= 3:
            os.kill(process.pid, number)
            time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # whoever is impatient does no harm
            break
        time.sleep(0.02)
    done = process.wait()
    assert done.returncode == 128 + number, done.stderr
    assert "--resume" in done.stdout
    record = record_of(run)
    assert record["status"] == "interrupted"
    assert 3 <= record["updates"] < 12
    done = finetune("run", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert record_of(run)["status"] == "completed"
    assert (run / "history.jsonl").read_text() == (finished / "history.jsonl").read_text()
    assert (run / "model" / "model.safetensors").read_bytes() == (finished / "model" / "model.safetensors").read_bytes()
    again = finetune("run", "--resume", run)
    assert again.returncode == 0
    assert "completed already" in again.stdout


def test_resume_refuses_what_changed(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = finetune("run", "bert_cls", *small, "--output", run, "--set", "train.eval_every_updates=6")
    assert done.returncode == 0, done.stderr
    record = record_of(run)
    record["status"] = "interrupted"
    (run / "run.json").write_text(json.dumps(record))
    for override, named in (
        ("train.lr=1e-3", "train.lr"),
        ("train.seed=5", "train.seed"),
        ("data.max_tokens=40", "data.max_tokens"),
    ):
        done = finetune("run", "--resume", run, "--set", override)
        assert done.returncode == 2
        assert named in done.stderr
        assert "Traceback" not in done.stderr
        assert record_of(run)["status"] == "interrupted"


def test_plan_says_what_a_run_costs(small: list[str], tmp_path: Path) -> None:
    done = finetune("plan", "bert_cls", *small, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"updates +12 of 16 rows", done.stdout)
    assert re.search(r"training +about \d", done.stdout)
    assert re.search(r"memory +about \d", done.stdout)
    assert re.search(r"faster by +train.fast_dropout, .*train.length_buckets; =false", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state a process; other tests of this process have made theirs."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_disk_that_is_too_small_is_noticed_before_training(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=1, used=0, free=10**7))
    settings = ["--set", "train.threads=1", "--set", "train.reuse_memory=false"]
    assert main(["run", "bert_cls", "--data", str(reviews), *settings]) == 2
    assert "and 0.01 GB are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bert_clss"], "Did you mean bert_cls"),
        (["bert_cls", "--set", "train.lrr=1"], "Did you mean train.lr"),
        (["bert_cls", "--set", "train.lr=fast"], "train.lr=fast"),
        (["bert_cls", "--set", "lr=1"], "train.lr"),
        (["bert_cls", "--data", "nowhere.csv"], "nowhere.csv"),
        (["bert_cls", "--adapter", "lorra"], "lorra"),
        (["bert_cls", "--set", "train.precision=fp16"], "train.precision=fp16"),
        (["bert_cls", "--set", "model.name=./nowhere"], "nowhere"),
        (["bert_cls", "--set", "model.revision=main"], "model.revision"),
        (["--resume", "nowhere"], "nowhere"),
        ([], "--recipe"),
    ],
)
def test_bad_flags_get_one_message_and_leave_nothing(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has torch already; the launch line itself is refused in the next test."""
    from finetune.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_launch_line_prints_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    done = launch(LINE, "--set", "train.lrr=1", "--output", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("Did you mean train.lr?") == 1
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_kind_is_refused(finished: Path, tmp_path: Path) -> None:
    """A folder whose weights lack the encoder must not become random numbers in silence."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(finished / "model", broken)
    weights = load_file(broken / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layer.3" not in name}, broken / "model.safetensors")
    done = finetune("run", "bert_cls", "--set", f"model.name={broken}", folder=tmp_path)
    assert done.returncode == 2
    assert "lacks weights" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
