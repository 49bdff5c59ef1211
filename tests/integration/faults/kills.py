"""SIGKILL at random instants of real runs that save after every update: resumed, they end with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from finetune.checkpoint import Checkpoints
from finetune.history import read_history
from finetune.verify import differences
from tests.forks import Command, forks
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records

# A run's length by what is trained: it outlasts its kills.
UPDATES = {"frozen": 40, "lora": 24, "full": 16}
# When to kill: while a checkpoint is written, while old ones are taken away, at any time of training, while starting,
# and after the last update, when the model is exported and judged. After these a run is let go on to its end.
WHEN = ("start", "save", "rotate", "train", "save", "start", "save", "end")
PATIENCE_S = 180.0
# How long a save and the end of a run take on two cores; a kill falls anywhere in there.
SAVE_S = {"frozen": 0.005, "lora": 0.02, "full": 0.7}
END_S = 1.0
START_S = 1.2


def run(records: Records, total: int, work: Path) -> None:
    """A case is one kill; the last of a run also lets it end, and compares it with one that nobody killed."""
    data = stores.real_checkpoints(work).parent / "reviews.csv"
    records.run("kills", total, lambda number: _case(number, total, records.seed, data, work), counted="kills")


def _case(number: int, total: int, seed: int, data: Path, work: Path) -> Outcome:
    rng = random.Random(f"kill {seed} {number}")
    chain, position = divmod(number, len(WHEN))
    adapter = list(UPDATES)[chain % len(UPDATES)]
    folder, whole = work / f"kills-{seed}-{chain}", _left_alone(adapter, data, work)
    if position == 0:
        shutil.rmtree(folder, ignore_errors=True)
    where = _kill(_start(adapter, data, folder), folder, adapter, WHEN[position], rng)
    while where == "ended":  # before its kill: it must be right all the same, and the kill is for another
        if different := differences(whole, folder):
            return Outcome(adapter, f"{adapter}: other bits after kills: {different}; kept in {folder}")
        shutil.rmtree(folder)
        where = _kill(_start(adapter, data, folder), folder, adapter, WHEN[position], rng)
    kind = f"{adapter}, in {where}"
    if where.startswith("exit"):
        return Outcome(adapter, f"{adapter}: {where}")
    if problem := _lost(folder):
        return Outcome(kind, f"{adapter}, killed in {where}: {problem}; kept in {folder}")
    if position + 1 < len(WHEN) and number + 1 < total:
        return Outcome(kind)
    done = _start(adapter, data, folder).wait(PATIENCE_S)
    if done.returncode:
        return Outcome(kind, f"{adapter}: not resumed: {done.stderr[-800:]}")
    if different := differences(whole, folder):
        return Outcome(kind, f"{adapter}: other bits after kills: {different}; kept in {folder}")
    shutil.rmtree(folder)
    return Outcome(kind)


def _lost(folder: Path) -> str:
    """Empty, or what of the killed run is gone: more than the update whose save was on its way."""
    notes: list[str] = []
    checkpoints = Checkpoints(folder / "checkpoints", 1, notes.append)
    found = checkpoints.newest() if checkpoints.updates() else None
    logged, saved = _logged(folder), found[1].update if found else 0
    if notes:
        return f"a checkpoint was not whole: {notes}"
    return f"update {logged} was done, {saved} is the newest checkpoint" if logged - saved > 1 else ""


def _start(adapter: str, data: Path, folder: Path) -> Command:
    """The run begun, or gone on with when it had come so far that it can be."""
    arguments = ["run", "--resume", str(folder)]
    if not (folder / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings = [f"train.max_updates={UPDATES[adapter]}", "train.save_every_updates=1", "train.batch_size=8"]
        settings += ["data.max_tokens=16", "objective.baselines=false", "train.threads=1", "train.keep_checkpoints=1"]
        settings += ["train.epochs=40", "train.eval_every_updates=5"]
        flags = [word for setting in settings for word in ("--set", setting)]
        arguments = ["run", "bert_cls", "--adapter", adapter, "--data", str(data), "--output", str(folder), *flags]
    return forks().start(arguments, folder.parent, os.environ | {"HF_HUB_OFFLINE": "1"})


def _left_alone(adapter: str, data: Path, work: Path) -> Path:
    """A run that nobody killed, made once; killed runs must equal it."""
    folder = work / f"whole-{adapter}"
    if not (folder / "README.md").exists():
        shutil.rmtree(folder, ignore_errors=True)
        if problem := (done := _start(adapter, data, folder).wait(PATIENCE_S)).returncode:
            raise RuntimeError(f"the run that is left alone ended with {problem}: {done.stderr[-2000:]}")
    return folder


def _kill(process: Command, folder: Path, adapter: str, when: str, rng: random.Random) -> str:
    """Wait for the instant, kill; where it fell, from what it left behind."""
    since, until = time.time(), time.monotonic() + PATIENCE_S
    checkpoints = folder / "checkpoints"

    def wait_for(mark: str) -> None:
        while process.running() and time.monotonic() < until and not _new(checkpoints, mark, since):
            time.sleep(0.0003)

    if when == "start":
        time.sleep(START_S * rng.random())
    else:
        last = _logged(folder) + 1 + rng.randrange(2) if when != "end" else UPDATES[adapter]
        while process.running() and time.monotonic() < until and _logged(folder) < last:
            time.sleep(0.005)
    if when == "save":
        wait_for(".writing-*")
        time.sleep(SAVE_S[adapter] * rng.random())
    elif when == "rotate":
        wait_for(".old-*")
    elif when == "train":
        time.sleep(0.3 * rng.random())
    elif when == "end":
        time.sleep(END_S * rng.random())
    if process.running():
        os.kill(process.pid, signal.SIGKILL)
    done = process.wait()
    if done.returncode != -signal.SIGKILL:
        return f"exit {done.returncode}: {done.stderr[-800:]}" if done.returncode else "ended"
    if _new(checkpoints, ".writing-*", since):
        return "save"
    # The best one and the newest stay; a third is about to go.
    if _new(checkpoints, ".old-*", since) or len(list(checkpoints.glob("update_*"))) > 2:
        return "rotate"
    if when == "start":
        return "start"
    return "export" if _logged(folder) == UPDATES[adapter] else "training"


def _new(checkpoints: Path, mark: str, since: float) -> bool:
    """Whether this process made it: what the one before left behind stays for a while."""
    for path in checkpoints.glob(mark):
        try:
            if path.stat().st_ctime >= since:
                return True
        except FileNotFoundError:  # between the two calls
            continue
    return False


def _logged(folder: Path) -> int:
    history = folder / "history.jsonl"
    return max((line["update"] for line in read_history(history)), default=0) if history.exists() else 0
