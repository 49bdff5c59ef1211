"""SIGKILL at random instants of real runs that save after every update: resumed, they end with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from finetune.verify import differences
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records

UPDATES = 40
# After so many kills a run is let go on to its end and compared.
KILLS_A_RUN = 5
PATIENCE_S = 180.0
ADAPTERS = ("frozen", "lora", "full")
# When to kill: while a checkpoint is written, while old ones are taken away, at any time of training, while starting.
WHEN = ("save", "save", "rotate", "train", "start")


def run(records: Records, total: int, work: Path) -> None:
    """A case is one kill; the last of a run also lets it end."""
    data = stores.real_checkpoints(work).parent / "reviews.csv"
    records.run("kills", total, lambda number: _case(number, total, records.seed, data, work), counted="kills")


def _case(number: int, total: int, seed: int, data: Path, work: Path) -> Outcome:
    rng = random.Random(f"kill {seed} {number}")
    chain = number // KILLS_A_RUN
    adapter = ADAPTERS[chain % len(ADAPTERS)]
    folder, whole = work / f"kills-{seed}-{chain}", _left_alone(adapter, data, work)
    if number % KILLS_A_RUN == 0:
        shutil.rmtree(folder, ignore_errors=True)
    started = (folder / "run.json").exists()
    arguments = ["--resume", str(folder)] if started else _first(adapter, data, folder)
    where = _kill(arguments, folder, WHEN[number % len(WHEN)], rng)
    if where.startswith("ended"):
        return Outcome("ended before the kill", "" if where == "ended with 0" else f"{adapter}: {where}")
    kind = f"{adapter}, in {where}"
    if (number + 1) % KILLS_A_RUN and number + 1 != total:
        return Outcome(kind)
    done = subprocess.run(_command(_resume_or_first(adapter, data, folder)), capture_output=True, text=True)
    if done.returncode:
        return Outcome(kind, f"{adapter}: not resumed: {done.stderr[-800:]}")
    different = differences(whole, folder)
    if different:
        return Outcome(kind, f"{adapter}: other bits after kills: {different}; kept in {folder}")
    shutil.rmtree(folder)
    return Outcome(kind)


def _resume_or_first(adapter: str, data: Path, folder: Path) -> list[str]:
    return ["--resume", str(folder)] if (folder / "run.json").exists() else _first(adapter, data, folder)


def _first(adapter: str, data: Path, folder: Path) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    settings = (f"train.max_updates={UPDATES}", "train.save_every_updates=1", "train.batch_size=8", "train.epochs=40")
    settings += ("data.max_tokens=16", "objective.baselines=false", "train.threads=1", "train.eval_every_updates=10")
    flags = [word for setting in settings for word in ("--set", setting)]
    return ["--recipe", "bert_cls", "--adapter", adapter, "--data", str(data), "--output", str(folder), *flags]


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "finetune.run", *arguments]


def _left_alone(adapter: str, data: Path, work: Path) -> Path:
    """A run that nobody killed, made once; killed runs must equal it."""
    folder = work / f"whole-{adapter}"
    if not (folder / "README.md").exists():
        subprocess.run(_command(_first(adapter, data, folder)), check=True, capture_output=True)
    return folder


def _kill(arguments: list[str], folder: Path, when: str, rng: random.Random) -> str:
    """Start, wait for the instant, kill; where it fell, from what it left behind."""
    checkpoints, history = folder / "checkpoints", folder / "history.jsonl"
    begun = history.stat().st_size if history.exists() else 0
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until, delay = time.monotonic() + PATIENCE_S, rng.random()
        if when == "start":
            time.sleep(6 * delay)
        else:
            while process.poll() is None and time.monotonic() < until and not _grew(history, begun):
                time.sleep(0.005)
            time.sleep(0.5 * rng.random())  # some updates after it went on
        mark = {"save": ".writing-*", "rotate": ".old-*"}.get(when)
        while mark and process.poll() is None and time.monotonic() < until and not next(checkpoints.glob(mark), None):
            pass  # a save takes milliseconds
        if when == "save":
            time.sleep(0.03 * delay * delay)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        problem = process.communicate()[1]
    if process.returncode != -signal.SIGKILL:
        return f"ended with {process.returncode}{': ' + problem[-500:] if process.returncode else ''}"
    if next(checkpoints.glob(".writing-*"), None):
        return "save"
    return "rotate" if next(checkpoints.glob(".old-*"), None) else "start" if when == "start" else "training"


def _grew(history: Path, begun: int) -> bool:
    """The resumed run cuts its log back, and then adds to it."""
    return history.exists() and history.stat().st_size not in (0, begun)
