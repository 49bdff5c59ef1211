"""One process of two raises, leaves early, is killed or is stopped, or the launcher is killed: nobody stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.test_launch_line import LINE, ROOT, TWO, environment, finetune, record_of
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

# Two processes that import everything on part of one core: no limit of the product, so it is generous.
START_S = 240

# A recipe of the user's own, whose second process comes to grief in the third update.
GRIEF = """
    def loss_sum(model, batch):
        global calls
        calls = globals().get("calls", 0) + 1
        if __import__("os").environ.get("RANK") == "{rank}" and calls == {call}:
            {what}
"""


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("lost") / "reviews.csv", rows=160)


@contextlib.contextmanager
def started(
    line: str, recipe: Path | str, reviews: Path, run: Path, more: Sequence[str] = ("train.epochs=500",)
) -> Iterator[subprocess.Popen[str]]:
    """A launch whose processes can be found, and are gone afterwards whatever the test did."""
    settings = ("train.batch_size=8", "data.max_tokens=16", "objective.baselines=false", *more)
    options = [word for setting in settings for word in ("--set", setting)]
    command = [*line.split(), "--recipe", str(recipe), "--data", str(reviews), "--output", str(run), *options]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(ACCELERATE_USE_CPU="true"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in workers(run):
            left.kill()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def workers(run: Path) -> list[psutil.Process]:
    """The training processes of a run, in the order of their ranks; the launcher is none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if str(run) in command and "accelerate" not in "".join(command[:3]):
                found.append((int(process.environ().get("RANK", "0")), process.pid, process))
    return [process for _, _, process in sorted(found, key=lambda entry: entry[:2])]


def listening(processes: Sequence[psutil.Process]) -> set[str]:
    """The addresses that processes listen on."""
    connections = [some for process in processes for some in process.net_connections("inet")]
    return {some.laddr.ip for some in connections if some.status == psutil.CONN_LISTEN}


def until(condition: Any, seconds: float) -> float:
    """Seconds until the condition held; fails when it did not in time."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)
    return time.monotonic() - began


def updates(run: Path) -> int:
    path = run / "history.jsonl"
    return path.read_text().count("loss") if path.exists() else 0


def two() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return TWO.format(port=free.getsockname()[1])


@pytest.mark.parametrize(
    ("what", "named"), [('raise RuntimeError("no more")', "no more"), ("__import__('os')._exit(0)", "is gone")]
)
def test_one_raises_or_leaves(what: str, named: str, reviews: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "grief.py"
    assert finetune("cp", "bert_cls", recipe).returncode == 0
    source = recipe.read_text()
    head = "    def loss_sum(model, batch):\n"
    assert source.count(head) == 1
    recipe.write_text(source.replace(head, GRIEF.format(what=what, rank=1, call=3).lstrip("\n")))
    run = tmp_path / "run"
    with started(two(), recipe, reviews, run) as process:
        until(lambda: updates(run) >= 2, START_S)
        until(lambda: not workers(run), 15)
        output = process.communicate(timeout=30)[0]
    assert process.returncode != 0
    assert "Process 1 of 2" in output
    assert named in output
    assert record_of(run)["status"] == "failed"


@pytest.mark.parametrize(
    ("blow", "seconds", "named"), [(signal.SIGKILL, 15, "is gone"), (signal.SIGSTOP, 60, "was stopped")]
)
def test_one_is_killed_or_stopped(
    blow: signal.Signals, seconds: float, named: str, reviews: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started(two(), "bert_cls", reviews, run) as process:
        until(lambda: updates(run) >= 2, START_S)
        assert listening(workers(run)) == {"127.0.0.1"}
        os.kill(workers(run)[1].pid, blow)
        until(lambda: not workers(run), seconds)
        output = process.communicate(timeout=40)[0]
    assert process.returncode != 0
    assert "Process 1 of 2" in output
    assert named in output
    assert record_of(run)["status"] == "failed"
    assert not list(run.glob("checkpoints/.writing-*"))


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_the_launcher_is_ended(blow: signal.Signals, reviews: Path, tmp_path: Path) -> None:
    """The process that it started finishes its update, saves and leaves."""
    run = tmp_path / "run"
    with started(LINE.partition(" --recipe")[0], "bert_cls", reviews, run) as process:
        until(lambda: updates(run) >= 2, START_S)
        os.kill(process.pid, blow)
        until(lambda: not workers(run), 15)
    assert record_of(run)["status"] == "interrupted"
    assert len(list(run.glob("checkpoints/update_*"))) == 1
