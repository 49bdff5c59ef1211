"""Elastic mode: the same bits with 1, 2 and 4 processes, and when their number changes on the way."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from finetune.files import sha256_file
from tests.integration.test_launch_line import LINE, launch, record_of
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

SETTINGS = (
    "train.deterministic=elastic",
    "train.max_updates=4",
    "train.batch_size=22",  # 4 shards: 2 processes have two each; a third process would have an empty one
    "train.save_every_updates=1",
    "train.keep_checkpoints=9",
    "train.lr=1e-3",
    "adapter=lora",  # small checkpoints; every gradient goes the same way
    "data.max_tokens=24",
    "objective.baselines=false",
)


def line(processes: int) -> str:
    if processes == 1:
        return LINE
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--multi_gpu --num_processes {processes} --num_machines 1 --main_process_port {port}"
    return LINE.replace("accelerate launch", f"accelerate launch {flags}")


def run(reviews: Path, folder: Path, processes: int, *more: str) -> Path:
    options = [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]
    done = launch(line(processes), "--data", reviews, "--output", folder, *options, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert record_of(folder)["hardware"]["processes"] == processes
    return folder


def cut_back(folder: Path, update: int) -> None:
    """As if the run had been killed after `update`."""
    for checkpoint in (folder / "checkpoints").glob("update_*"):
        if int(checkpoint.name.removeprefix("update_")) > update:
            shutil.rmtree(checkpoint)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    shutil.rmtree(folder / "model")


def bits(folder: Path) -> tuple[str, str, str]:
    """Of the exported weights, the optimizer's last state and the log of every update and evaluation."""
    last = folder / "checkpoints" / "update_00000004"
    files = (folder / "model" / "model.safetensors", last / "optimizer.safetensors", folder / "history.jsonl")
    return tuple(map(sha256_file, files))  # type: ignore[return-value]


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv", rows=160)
    alone = run(reviews, tmp_path / "one", 1)
    expected = bits(alone)
    for processes in (2, 4):
        assert bits(run(reviews, tmp_path / str(processes), processes)) == expected

    moved = tmp_path / "moved"
    shutil.copytree(alone, moved)
    for update, processes in ((1, 2), (3, 1)):
        cut_back(moved, update)
        done = launch(line(processes), "--resume", moved, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, done.stderr[-2000:]
    assert bits(moved) == expected
