"""HF Trainer and plain Accelerate under the same blows: kills, damaged checkpoints, resuming, another process more."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from tests.forks import Command, Forks
from tests.integration.faults.damage import WAYS, _damage
from tests.integration.faults.kills import _new
from tests.integration.faults.records import Outcome, Records
from tests.trainers import write_reviews

PEERS = ("trainer", "accelerate")
MEASURES = ("kills", "damage", "resume", "elastic")
# Folder of a checkpoint; the file that is written last, without which a save was on its way.
FOLDERS = {"trainer": "checkpoint-", "accelerate": "step_"}
LAST = {"trainer": "trainer_state.json", "accelerate": "random_states_0.pkl"}
SAVE_S = {"trainer": 0.06, "accelerate": 0.3}
UPDATES = 14
# 8 rows an update: an epoch of 96 ends with a whole update, one of 100 with a short one.
ROWS = (100, 96)
# Half of the kills inside a save, as among ours.
WHEN = ("save", "train")
PATIENCE_S = 120.0


def run(records: Records, kills: int, damages: int, stops: int, work: Path) -> None:
    """A part for each peer and measure: so many kills, damaged files and stops, and one elastic difference."""
    if not kills + damages + stops:
        return
    folder = work / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    for rows in ROWS:
        write_reviews(folder / f"{rows}.csv", rows=rows)
    measures = ((kills, _killed), (damages, _damaged), (stops, _stopped), (len(ROWS), _elastic))
    for peer in PEERS:
        for name, (total, measure) in zip(MEASURES, measures, strict=True):
            case = functools.partial(_case, measure, peer, records.seed, folder)
            records.run(f"{peer}: {name}", total, case)


def _case(
    measure: Callable[[str, int, int, Path, Path], Outcome],
    peer: str,
    seed: int,
    folder: Path,
    number: int,
) -> Outcome:
    return measure(peer, number, seed, folder, folder / f"{ROWS[0]}.csv")


@functools.cache
def _forks() -> Forks:
    return Forks(["transformers.trainer", "tests.integration.faults.peer_runs"])


def _start(peer: str, folder: Path, reviews: Path, *options: str, world: int = 1) -> Command:
    arguments = [peer, str(folder), str(reviews), str(UPDATES), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}
    return _forks().start(arguments, folder.parent, environment, world, "tests.integration.faults.peer_runs")


def _whole(peer: str, folder: Path, reviews: Path) -> Path:
    """A run that was left alone, with all its checkpoints, made once."""
    whole = folder / f"{peer}-whole"
    if not (whole / "final.safetensors").exists():
        shutil.rmtree(whole, ignore_errors=True)
        if (done := _start(peer, whole, reviews, "keep").wait(PATIENCE_S)).returncode:
            raise RuntimeError(f"{peer} left alone ended with {done.returncode}: {done.stderr[-2000:]}")
    return whole


def _checkpoint(peer: str, folder: Path, update: int) -> Path:
    return folder / f"{FOLDERS[peer]}{update}"


def _ended(peer: str, folder: Path, reviews: Path, whole: Path) -> str:
    """Go on to the end: whether that works, and whether it comes to the same bits."""
    done = _start(peer, folder, reviews).wait(PATIENCE_S)
    if done.returncode:
        return "not resumed"
    return "resumed, same bits" if _difference(whole, folder) == 0 else "resumed, other bits"


def _difference(one: Path, other: Path) -> float:
    """Largest difference of a weight, relative to the largest weight of its tensor."""
    first, second = (load_file(folder / "final.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(
        float((value - second[name]).abs().max() / value.abs().max().clamp(min=1e-12)) for name, value in first.items()
    )


def _killed(peer: str, number: int, seed: int, folder: Path, reviews: Path) -> Outcome:
    rng = random.Random(f"{peer} kill {seed} {number}")
    whole, killed = _whole(peer, folder, reviews), folder / f"{peer}-killed"
    shutil.rmtree(killed, ignore_errors=True)
    since, until, update = time.time(), time.monotonic() + PATIENCE_S, rng.randint(2, UPDATES - 4)
    process = _start(peer, killed, reviews)
    while process.running() and time.monotonic() < until and not _new(killed, f"{FOLDERS[peer]}{update}", since):
        time.sleep(0.0003)
    time.sleep(SAVE_S[peer] * rng.random() if WHEN[number % 2] == "save" else 0.2 * rng.random())
    if process.running():
        os.kill(process.pid, signal.SIGKILL)
    if process.wait().returncode != -signal.SIGKILL:
        return Outcome("ended before the kill")
    newest = max(killed.glob(f"{FOLDERS[peer]}*"), key=lambda path: int(path.name.removeprefix(FOLDERS[peer])))
    where = "training" if (newest / LAST[peer]).exists() else "save"
    return Outcome(f"{_ended(peer, killed, reviews, whole)}, killed in {where}")


def _damaged(peer: str, number: int, seed: int, folder: Path, reviews: Path) -> Outcome:
    """A file of the newest of three checkpoints, one after the other, in every way."""
    rng = random.Random(f"{peer} damage {seed} {number}")
    whole, damaged = _whole(peer, folder, reviews), folder / f"{peer}-damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    last = UPDATES - 1
    for update in range(last - 2, last + 1):
        shutil.copytree(_checkpoint(peer, whole, update), _checkpoint(peer, damaged, update))
    place = _checkpoint(peer, damaged, last)
    names = sorted(path.name for path in place.iterdir() if path.is_file() and path.name != "README.md")
    name, way = names[number % len(names)], WAYS[number // len(names) % len(WAYS)]
    _damage(place / name, way, _checkpoint(peer, whole, last - 1) / name, rng)
    ended = _ended(peer, damaged, reviews, whole)
    return Outcome("noticed" if ended == "not resumed" else ended.replace("resumed", "silent"))


def _stopped(peer: str, number: int, seed: int, folder: Path, reviews: Path) -> Outcome:
    """With dropout and shuffling: what was written up to an update, gone on with."""
    whole, stopped = _whole(peer, folder, reviews), folder / f"{peer}-stopped"
    shutil.rmtree(stopped, ignore_errors=True)
    for update in range(1, 1 + 1 + number % (UPDATES - 1)):
        shutil.copytree(_checkpoint(peer, whole, update), _checkpoint(peer, stopped, update))
    return Outcome(_ended(peer, stopped, reviews, whole))


def _elastic(peer: str, number: int, seed: int, folder: Path, reviews: Path) -> Outcome:
    """One process against two, without dropout, as many rows an update, for a little more than an epoch.

    Seen with transformers 5.23 and peft 0.21: by two processes HF Trainer logs twice the loss and twice the gradient
    norm of one, for the same rows, and clips accordingly.
    """
    made, rows = [], sorted(ROWS)[number]
    for world in (1, 2):
        made.append(folder / f"{peer}-elastic-{world}")
        shutil.rmtree(made[-1], ignore_errors=True)
        command = _start(peer, made[-1], folder / f"{rows}.csv", "nodropout", world=world)
        for done in command.wait_all(PATIENCE_S):
            if done.returncode:
                raise RuntimeError(f"{peer} with {world} processes ended with {done.returncode}: {done.stderr[-2000:]}")
    return Outcome(f"{_difference(*made):.1e} with {rows} rows")
