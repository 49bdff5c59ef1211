"""Shows that a run of somebody's own recipe and data, killed and resumed, ends with the bits of one left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.checkpoint import MANIFEST
from finetune.errors import FinetuneError
from finetune.files import sha256_file
from finetune.history import read_history

# Longest wait for the next update of a run that is to be killed.
PATIENCE_S = 600.0


class VerifyError(FinetuneError):
    """A run ended otherwise than it should; its own message is part of this one."""

    exit_code = 1


def verify_resume(flags: Sequence[str], updates: int, kills: Sequence[int], folder: Path) -> list[str]:
    """Differences between a run left alone and one killed (SIGKILL) after some updates and resumed; none is good.

    Both are real commands in processes of their own, which save after every update.

    Args:
        flags: of the launch line: recipe, data, settings.
        updates: length of the runs.
        kills: updates after which to kill; after the last the run goes on to its end.
        folder: where both runs go: `whole` and `killed`.

    Raises:
        VerifyError: a run failed; or it ended before it could be killed.
    """
    more = [
        *("--set", f"train.max_updates={updates}"),
        *("--set", "train.save_every_updates=1"),
        *("--set", f"train.keep_checkpoints={updates}"),
    ]
    whole, killed = folder / "whole", folder / "killed"
    _run([*flags, *more, "--output", str(whole)])
    next_flags = [*flags, *more, "--output", str(killed)]
    for update in kills:
        _kill_after(next_flags, killed, update)
        next_flags = ["--resume", str(killed)]
    _run(next_flags)
    return differences(whole, killed)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: exported files, predictions, the log, the last checkpoint."""
    found = []
    names = {
        str(path.relative_to(run))
        for run in (one, other)
        for part in ("model", "adapter")
        for path in (run / part).rglob("*")
        if path.is_file()
    }
    for name in sorted(names | {"predictions.parquet", "history.jsonl"}):
        paths = (one / name, other / name)
        if [path.exists() for path in paths] == [True, False] or [path.exists() for path in paths] == [False, True]:
            found.append(f"{name} is in one run only")
        elif paths[0].exists() and sha256_file(paths[0]) != sha256_file(paths[1]):
            found.append(name)
    last = [max((run / "checkpoints").glob("update_*")) for run in (one, other)]
    if last[0].name != last[1].name:
        found.append(f"the last checkpoint ({last[0].name} and {last[1].name})")
    else:
        hashes = [json.loads((folder / MANIFEST).read_text("utf-8"))["sha256"] for folder in last]
        # state.json has the run's own paths in it; what it says of the run stands in the log as well.
        found += [
            f"checkpoint file {name}"
            for name in sorted(hashes[0].keys() | hashes[1].keys())
            if name.endswith(".safetensors") and hashes[0].get(name) != hashes[1].get(name)
        ]
    return found


def _command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "finetune.run", *flags]


def _run(flags: Sequence[str]) -> None:
    done = subprocess.run(_command(flags), capture_output=True, text=True)
    if done.returncode:
        raise VerifyError(f"`finetune run {' '.join(flags)}` failed:\n{done.stderr.strip()[-2000:]}")


def _kill_after(flags: Sequence[str], run: Path, update: int) -> None:
    """Start a run and kill it as soon as its log has an update."""
    process = subprocess.Popen(_command(flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + PATIENCE_S
        while _logged(run) < update:
            if process.poll() is not None:
                problem = process.stderr.read().strip()[-2000:] if process.stderr else ""
                raise VerifyError(f"The run ended with {process.returncode} before update {update}.\n{problem}")
            if time.monotonic() > until:
                raise VerifyError(f"Update {update} did not come within {PATIENCE_S:.0f} s.")
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()


def _logged(run: Path) -> int:
    history = run / "history.jsonl"
    return max((line["update"] for line in read_history(history)), default=0) if history.exists() else 0
