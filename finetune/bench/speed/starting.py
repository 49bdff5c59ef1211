"""Times until something happens: an import, a help text, the first update of a run on a warm cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetune.errors import TrainingError
from finetune.recipe_files import recipes_folder

GOALS_S = {"import finetune": 0.3, "finetune --help": 0.5, "finetune run": 7.0, "accelerate launch": 12.0}
"""Seconds that are aimed at; the last two until the first update of bert_cls is done."""
LONGEST_S = 300.0


def starting_times(run: Callable[[list[str], int], tuple[int, str]], threads: int) -> dict[str, float]:
    """Seconds of each of GOALS_S, from the start of a process on.

    Raises:
        TrainingError: a command failed.
    """
    python, call = sys.executable, "from finetune.cli import console; console()"
    found = {}
    for name, command in (
        ("import finetune", [python, "-c", "import finetune"]),
        ("finetune --help", [python, "-c", call, "--help"]),
    ):
        started = time.monotonic()
        status, error = run(command, threads)
        found[name] = round(time.monotonic() - started, 3)
        if status:
            raise TrainingError(f"{name} ended with status {status}:\n{error.strip()[-1500:]}")
    script = recipes_folder().parent / "finetune" / "run.py"
    for name, command in (
        ("finetune run", [python, "-c", call, "run", "bert_cls"]),
        ("accelerate launch", [python, "-m", "accelerate.commands.launch", str(script), "--recipe", "bert_cls"]),
    ):
        until_first_update(command)  # once before: an installer may leave no bytecode, and files may be on a disk
        found[name] = round(until_first_update(command), 2)
    return found


def keeping_bytecode() -> dict[str, str]:
    """The environment of a process that keeps what it compiles: without, each run compiles for seconds."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def until_first_update(command: list[str]) -> float:
    """Seconds until a run's history has its first line; the run is then ended.

    Raises:
        TrainingError: it ended before, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-speed-") as temporary:
        folder, started = Path(temporary) / "run", time.monotonic()
        line = [*command, "--set", "objective.baselines=false", "--output", str(folder)]
        child = subprocess.Popen(
            line, env=keeping_bytecode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            while not (folder / "history.jsonl").exists():
                if child.poll() is not None or time.monotonic() - started > LONGEST_S:
                    child.kill()
                    raise TrainingError(f"{' '.join(line)} made no update:\n{child.communicate()[1].strip()[-1500:]}")
                time.sleep(0.005)
            return time.monotonic() - started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # nothing of that run is wanted
            child.communicate()
