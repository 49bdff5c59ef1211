"""Twenty canaries in the environment, in arguments and in configurations: none gets into a file or a message."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.data.cache import cache_dir
from tests.forks import forks
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

HUB = "hf_canaryCANARYcanaryCANARYcanary{:04d}"
PLAIN = "canary-of-no-form-{:04d}"
ENVIRONMENT = {
    "HF_TOKEN": HUB.format(1),
    "HUGGING_FACE_HUB_TOKEN": HUB.format(2),
    "WANDB_API_KEY": PLAIN.format(3),
    "GITHUB_TOKEN": "ghp_canaryCANARYcanaryCANARYcanaryCANARY0004",
    "OPENAI_API_KEY": "sk-canaryCANARYcanaryCANARY0005",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0006",
    "AWS_SECRET_ACCESS_KEY": PLAIN.format(7),
    "AZURE_CLIENT_SECRET": PLAIN.format(8),
    "MLFLOW_TRACKING_PASSWORD": PLAIN.format(9),
    "PIP_INDEX_URL": f"http://user:{PLAIN.format(10)}@127.0.0.1:9/simple",
}
# Arguments: the canary's number, and what is refused. 17 and 18 are known by the environment alone.
ARGUMENTS = {
    11: ["bert_cls", "--data", HUB.format(11)],
    12: ["bert_cls", "--set", f"model.name=https://user:{PLAIN.format(12)}@127.0.0.1:9/x"],
    13: ["bert_cls", "--set", f"hub.token={HUB.format(13)}"],
    14: ["bert_cls", "--output", f"runs/{HUB.format(14)}"],
    15: ["bert_cls", "--token", HUB.format(15)],
    16: [HUB.format(16)],
    17: ["bert_cls", "--set", f"train.lr={PLAIN.format(17)}"],
    18: ["bert_cls", "--set", f"data.text={PLAIN.format(18)}"],
}


# Part of each; "canary" alone is a word of the tokenizer's.
MARKS = ("canarycanary", "canary-of-no-form")


def sings(text: str) -> bool:
    return any(mark in text.lower() for mark in MARKS)


def canaries_below(folder: Path, since: float = 0.0) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime >= since]
    return [str(path) for path in files if sings(path.read_text("latin-1"))]


def test_a_run_repeats_nothing_of_its_environment(tmp_path: Path) -> None:
    reviews, began = write_reviews(tmp_path / "reviews.csv", rows=80), time.time()
    settings = ("train.max_updates=1", "data.max_tokens=16", "objective.baselines=false", "train.trackers=tensorboard")
    flags = [word for setting in settings for word in ("--set", setting)]
    arguments = ["run", "bert_cls", "--data", str(reviews), "--adapter", "frozen", "--output", "run", *flags]
    done = forks().run(arguments, tmp_path, {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert not sings(done.stdout + done.stderr)
    assert (tmp_path / "run" / "README.md").exists()
    assert canaries_below(tmp_path) == []
    (tmp_path / "run" / "planted").write_bytes(b"\xff" + ENVIRONMENT["AWS_ACCESS_KEY_ID"].encode())
    assert canaries_below(tmp_path) == [str(tmp_path / "run" / "planted")]
    assert canaries_below(cache_dir(), since=began) == []


@pytest.mark.parametrize("number", ARGUMENTS)
def test_no_message_repeats_an_argument_and_no_run_begins(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEPTUNE_API_TOKEN", PLAIN.format(17))
    monkeypatch.setenv("COMET_API_KEY", PLAIN.format(18))
    try:
        status = main(["run", *ARGUMENTS[number]])
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    printed = capsys.readouterr()
    assert status == 2
    assert not sings(printed.out + printed.err)
    assert printed.err.strip()
    assert list(tmp_path.iterdir()) == []


def test_no_configuration_may_hold_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cp", "bert_cls", "mine.py"]) == 0
    source = Path("mine.py").read_text()
    assert source.count('source="movie_snippets"') == 1
    Path("mine.py").write_text(source.replace('"movie_snippets"', f'"https://me:{PLAIN.format(19)}@127.0.0.1:9/a.csv"'))
    assert main(["run", "./mine.py", "--output", "run"]) == 2
    assert "data.source holds what looks like a token" in capsys.readouterr().err

    from finetune.recipe import load_recipe

    Path("old").mkdir()
    config = load_recipe("bert_cls").resolved()
    config["data"]["text"] = HUB.format(20)
    record = {
        "status": "interrupted", "task": "text-classification", "config": config, "data": {"labels": ["a", "b"]},
        "recipe": {"name": "bert_cls", "origin": "packaged", "hash": ""}, "command": "",
    }  # fmt: skip
    Path("old/run.json").write_text(json.dumps(record))
    assert main(["run", "--resume", "old"]) == 2
    printed = capsys.readouterr()
    assert "data.text holds what looks like a token" in printed.err
    assert not sings(printed.out + printed.err)
    found = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}  # of mine.py, where Python keeps bytecode
    assert found == {"mine.py", "old"}
