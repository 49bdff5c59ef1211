"""Two processes end well together, or one comes to grief: all are gone in time, the culprit is named, no orphan."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.forks import Command, forks
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records
from tests.integration.test_launch_line import finetune, record_of
from tests.integration.test_lost_processes import GRIEF, started, two, updates, workers

# Each tenth clean run, and every second one that somebody leaves, is a literal launch line; the others are forks.
LITERAL_CLEAN, LITERAL_LOST = 10, 2
CLEAN = (
    ("bert_cls", "adapter=lora"),
    ("bert_cls", "adapter=full"),
    ("bert_cls", "adapter=lora", "train.deterministic=elastic"),
    ("bert_cls", "adapter=frozen"),
)
GRIEFS = {"raised": 'raise RuntimeError("no more")', "left early": "__import__('os')._exit(0)"}
BLOWS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}
NAMED = {"raised": "no more", "left early": "is gone", "killed": "is gone", "frozen": "was stopped"}
# Until all are gone, from the moment it happened.
LIMITS_S = {"raised": 15.0, "left early": 15.0, "killed": 15.0, "frozen": 60.0}
PATIENCE_S = 120.0


def run(records: Records, clean: int, lost: int, frozen: int, work: Path) -> None:
    """Clean runs; then one process of two raises, leaves, is killed (`lost` of each) or is stopped (`frozen`)."""
    reviews, folder = stores.real_checkpoints(work).parent / "reviews.csv", work / "exits"
    records.run("clean exits", clean, lambda number: _clean(number, reviews, folder), counted="runs")
    for kind in LIMITS_S:
        total = frozen if kind == "frozen" else lost
        if total:
            records.run(
                f"one {kind}", total, lambda number, kind=kind: _lost(kind, number, records.seed, reviews, folder)
            )


def _flags(reviews: Path, run: Path, *settings: str) -> list[str]:
    settings = ("train.batch_size=8", "data.max_tokens=16", "objective.baselines=false", *settings)
    flags = [word for setting in settings for word in ("--set", setting)]
    return ["--data", str(reviews), "--output", str(run), *flags]


def _forked(recipe: str, flags: list[str]) -> Command:
    return forks().start(["run", recipe, *flags], Path.cwd(), os.environ | {"HF_HUB_OFFLINE": "1"}, world=2)


def _clean(number: int, reviews: Path, folder: Path) -> Outcome:
    shutil.rmtree(folder, ignore_errors=True)
    run = folder / "run"
    recipe, *settings = CLEAN[number % len(CLEAN)]
    settings.append("train.max_updates=2")
    if number % LITERAL_CLEAN == LITERAL_CLEAN - 1:
        kind = "launch line"
        with started(two(), recipe, reviews, run, settings) as process:
            output = process.communicate(timeout=PATIENCE_S)[0]
            statuses, left = [process.returncode], [worker.pid for worker in workers(run)]
    else:
        kind = "forks"
        command = _forked(recipe, _flags(reviews, run, *settings))
        done = command.wait_all(PATIENCE_S)
        statuses, output = [one.returncode for one in done], "".join(one.stderr for one in done)
        left = [pid for pid in command.pids if psutil.pid_exists(pid)]
    if any(statuses) or left or "Traceback" in output or record_of(run)["status"] != "completed":
        return Outcome(kind, f"{recipe} {settings}: exits {statuses}, left {left}: {output[-1000:]}")
    return Outcome(f"exit 0 ({kind})")


def _lost(kind: str, number: int, seed: int, reviews: Path, folder: Path) -> Outcome:
    rng = random.Random(f"lost {kind} {seed} {number}")
    rank, update, way = rng.randrange(2), rng.randint(1, 6), "launch line" if number % LITERAL_LOST else "forks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run, recipe = folder / "run", "bert_cls"
    if kind in GRIEFS:
        recipe = str(_with_grief(folder / "grief.py", GRIEFS[kind], rank, update))
    settings = ["train.epochs=500", f"adapter={rng.choice(['lora', 'full'])}"]
    if way == "forks":
        command = _forked(recipe, _flags(reviews, run, *settings))

        def gone() -> bool:
            return not command.running()

        seconds = _wait_for_end(kind, lambda: command.pids[rank], gone, run, update, rng)
        done = command.wait_all(PATIENCE_S)
        statuses, output = [one.returncode for one in done], "".join(one.stdout + one.stderr for one in done)
        ended = all(statuses[other] for other in range(2) if other != rank)
    else:
        with started(two(), recipe, reviews, run, settings) as process:
            seconds = _wait_for_end(kind, lambda: workers(run)[rank].pid, lambda: not workers(run), run, update, rng)
            output = process.communicate(timeout=PATIENCE_S)[0]
            statuses, ended = [process.returncode], process.returncode != 0
    what = f"process {rank} {kind} in update {update + 1} ({way}): {seconds:.1f} s, exits {statuses}"
    if seconds > LIMITS_S[kind]:
        return Outcome(kind, f"{what}: too late")
    if not ended:
        return Outcome(kind, f"{what}: exit 0")
    if f"Process {rank} of 2" not in output or NAMED[kind] not in output:
        return Outcome(kind, f"{what}: the culprit is not named: {output[-1000:]}")
    # The record is the first process's to write; when it was killed, nobody is there who could.
    if (rank or kind == "raised") and (status := record_of(run)["status"]) != "failed":
        return Outcome(kind, f"{what}: run.json says {status}")
    return Outcome(f"{way}: gone within {_rounded(seconds)} s, culprit named")


def _rounded(seconds: float) -> int:
    return next(limit for limit in (2, 5, 10, 15, 20, 30, 60) if seconds <= limit)


def _wait_for_end(
    kind: str, victim: Callable[[], int], gone: Callable[[], bool], run: Path, update: int, rng: random.Random
) -> float:
    """Strike, or see it happen; the seconds from then until all are gone, or until twice the limit."""
    began = time.monotonic()
    # Before there is a run, a launch line has no workers that could be gone.
    while not (run / "run.json").exists() or (updates(run) < update and not gone()):
        if time.monotonic() - began > PATIENCE_S:
            return PATIENCE_S
        time.sleep(0.05)
    if kind in BLOWS:
        time.sleep(0.5 * rng.random())
        with contextlib.suppress(ProcessLookupError, IndexError):  # gone by itself: no culprit will be named
            os.kill(victim(), BLOWS[kind])
    began = time.monotonic()
    while not gone() and time.monotonic() - began < 2 * LIMITS_S[kind]:
        time.sleep(0.1)
    return time.monotonic() - began


def _with_grief(path: Path, what: str, rank: int, update: int) -> Path:
    """A recipe of the user's own, one process of which comes to grief after some updates."""
    if finetune("cp", "bert_cls", path).returncode:
        raise RuntimeError("finetune cp failed")
    source, head = path.read_text(), "    def loss_sum(model, batch):\n"
    if source.count(head) != 1:
        raise RuntimeError("bert_cls has no loss_sum where the harness looks for it")
    grief = GRIEF.format(what=what, rank=rank, call=update + 1).lstrip("\n")
    path.write_text(source.replace(head, grief))
    return path
