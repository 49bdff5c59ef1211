"""SIGKILL at random instants of real runs that save after every update: resumed, they end with the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from finetune.checkpoint import Checkpoints
from finetune.history import read_history
from finetune.verify import differences
from tests.forks import Command, forks
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records


@dataclass(frozen=True)
class Kind:
    """Runs to be killed.

    Attributes:
        updates: long enough to outlast the kills.
        start_s, save_s: what starting and saving take on two cores; a kill falls anywhere in there.
    """

    adapter: str
    world: int
    updates: int
    start_s: float
    save_s: float

    @property
    def name(self) -> str:
        return self.adapter if self.world == 1 else f"{self.adapter} by {self.world} processes"


KINDS = (
    Kind("frozen", 1, 40, 1.2, 0.005),
    Kind("lora", 1, 24, 1.2, 0.02),
    Kind("full", 1, 16, 1.2, 0.7),
    Kind("lora", 2, 24, 4.0, 0.02),
)
# When to kill: while a checkpoint is written, while old ones are taken away, at any time of training, while starting,
# and after the last update, when the model is exported and judged. After these a run is let go on to its end.
WHEN = ("start", "save", "rotate", "train", "save", "start", "save", "end")
END_S = 1.0
PATIENCE_S = 180.0


def run(records: Records, total: int, work: Path) -> None:
    """A case is one kill; the last of a run also lets it end, and compares it with one that nobody killed."""
    data = stores.real_checkpoints(work).parent / "reviews.csv"
    records.run("kills", total, lambda number: _case(number, total, records.seed, data, work), counted="kills")


def _case(number: int, total: int, seed: int, data: Path, work: Path) -> Outcome:
    rng = random.Random(f"kill {seed} {number}")
    chain, position = divmod(number, len(WHEN))
    kind = KINDS[chain % len(KINDS)]
    folder, whole = work / f"kills-{seed}-{chain}", _left_alone(kind, data, work)
    if position == 0:
        shutil.rmtree(folder, ignore_errors=True)
    elif not folder.exists():  # of another version, or taken away: kills that nobody compares must not count
        for earlier in range(position):
            _kill(kind, data, folder, WHEN[earlier], random.Random(f"kill {seed} {number - position + earlier}"))
    where = _kill(kind, data, folder, WHEN[position], rng)
    while where == "ended":  # before its kill: it must be right all the same, and the kill is for another
        if different := differences(whole, folder):
            return Outcome(kind.name, f"{kind.name}: other bits after kills: {different}; kept in {folder}")
        shutil.rmtree(folder)
        where = _kill(kind, data, folder, WHEN[position], rng)
    outcome = f"{kind.name}, in {where}"
    if where.startswith("exit"):
        return Outcome(kind.name, f"{kind.name}: {where}")
    if problem := _lost(folder):
        return Outcome(outcome, f"{outcome}: {problem}; kept in {folder}")
    if position + 1 < len(WHEN) and number + 1 < total:
        return Outcome(outcome)
    for done in _start(kind, data, folder).wait_all(PATIENCE_S):
        if done.returncode:
            return Outcome(outcome, f"{kind.name}: not resumed: {done.stderr[-800:]}")
    if different := differences(whole, folder):
        return Outcome(outcome, f"{kind.name}: other bits after kills: {different}; kept in {folder}")
    shutil.rmtree(folder)
    return Outcome(outcome)


def _lost(folder: Path) -> str:
    """Empty, or what of the killed run is gone: more than the update whose save was on its way."""
    notes: list[str] = []
    checkpoints = Checkpoints(folder / "checkpoints", 1, notes.append)
    found = checkpoints.newest() if checkpoints.updates() else None
    logged, saved = _logged(folder), found[1].update if found else 0
    if notes:
        return f"a checkpoint was not whole: {notes}"
    return f"update {logged} was done, {saved} is the newest checkpoint" if logged - saved > 1 else ""


def _start(kind: Kind, data: Path, folder: Path) -> Command:
    """The run begun, or gone on with when it had come so far that it can be."""
    arguments = ["run", "--resume", str(folder)]
    if not (folder / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings = [f"train.max_updates={kind.updates}", "train.save_every_updates=1", "train.batch_size=8"]
        settings += ["data.max_tokens=16", "objective.baselines=false", "train.threads=1", "train.keep_checkpoints=1"]
        settings += ["train.epochs=40", "train.eval_every_updates=5"]
        flags = [word for setting in settings for word in ("--set", setting)]
        arguments = ["run", "bert_cls", "--adapter", kind.adapter, "--data", str(data), "--output", str(folder), *flags]
    return forks().start(arguments, folder.parent, os.environ | {"HF_HUB_OFFLINE": "1"}, kind.world)


def _left_alone(kind: Kind, data: Path, work: Path) -> Path:
    """A run that nobody killed, made once; killed runs must equal it."""
    folder = work / f"whole-{kind.adapter}-{kind.world}"
    if not (folder / "README.md").exists():
        shutil.rmtree(folder, ignore_errors=True)
        if problem := (done := _start(kind, data, folder).wait(PATIENCE_S)).returncode:
            raise RuntimeError(f"the run that is left alone ended with {problem}: {done.stderr[-2000:]}")
    return folder


def _kill(kind: Kind, data: Path, folder: Path, when: str, rng: random.Random) -> str:
    """Start, wait for the instant, kill all its processes; where it fell, from what it left behind."""
    since, until = time.time(), time.monotonic() + PATIENCE_S
    command, checkpoints = _start(kind, data, folder), folder / "checkpoints"

    def wait_for(mark: str) -> None:
        while command.running() and time.monotonic() < until and not _new(checkpoints, mark, since):
            time.sleep(0.0003)

    if when == "start":
        time.sleep(kind.start_s * rng.random())
    else:
        last = _logged(folder) + 1 + rng.randrange(2) if when != "end" else kind.updates
        while command.running() and time.monotonic() < until and _logged(folder) < last:
            time.sleep(0.005)
    if when == "save":
        wait_for(".writing-*")
        time.sleep(kind.save_s * rng.random())
    elif when == "rotate":
        wait_for(".old-*")
    elif when == "train":
        time.sleep(0.3 * rng.random())
    elif when == "end":
        time.sleep(END_S * rng.random())
    for pid in command.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    done = command.wait_all()
    failed = [one for one in done if one.returncode not in (0, -signal.SIGKILL)]
    if failed:
        return f"exit {failed[0].returncode}: {failed[0].stderr[-800:]}"
    if done[0].returncode == 0:
        return "ended"
    if _new(checkpoints, ".writing-*", since):
        return "save"
    # The best one and the newest stay; a third is about to go.
    if _new(checkpoints, ".old-*", since) or len(list(checkpoints.glob("update_*"))) > 2:
        return "rotate"
    if when == "start":
        return "start"
    return "export" if _logged(folder) == kind.updates else "training"


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
