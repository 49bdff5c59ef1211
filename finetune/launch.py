"""Makes one Accelerator for the processes that the launcher really started, and refuses a smaller world than told."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from finetune.errors import ConfigError, LaunchError
from finetune.hardware import has_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

TWO_CPU_PROCESSES = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 finetune/run.py ..."
)

_LAUNCH_MODULE = "accelerate.commands."


def make_accelerator(precision: str, trackers: list[str]) -> Accelerator:
    """The Accelerator of this process; on the CPU when there is no GPU, whatever the launcher guessed.

    Raises:
        LaunchError: the launcher was told more processes than it started.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from transformers.utils import logging as transformers_logging

    _check_trackers(trackers)
    # What transformers reports while loading is checked and said by finetune.models; its bars last milliseconds.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    told = told_processes()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if told is not None and started < told:
        raise LaunchError(
            f"The launcher was told --num_processes {told}, but it started {started} "
            f"process{'es' if started > 1 else ''}: `accelerate launch --cpu` starts one on a single machine.",
            f"For 2 CPU processes: {TWO_CPU_PROCESSES}",
        )
    if started > 1 and os.environ.get("LOCAL_WORLD_SIZE") == str(started):
        # One machine: nothing needs to be reachable from outside.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    accelerator = Accelerator(
        cpu=not has_accelerator(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=trackers or None,
        # Asked for here already; the run's own folder, known later, takes its place before a tracker starts.
        project_config=ProjectConfiguration(logging_dir="."),
    )
    if accelerator.num_processes != started:
        raise LaunchError(
            f"The launcher started {started} processes, but only {accelerator.num_processes} found each other.",
            f"For 2 CPU processes: {TWO_CPU_PROCESSES}",
        )
    return accelerator


def _check_trackers(trackers: list[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in known:
            raise ConfigError(f"train.trackers={name} is no tracker of Accelerate.", f"There are: {', '.join(known)}.")
        if name not in installed:
            raise ConfigError(f"train.trackers={name} is not installed.", f"pip install {name}")


def told_processes() -> int | None:
    """`--num_processes` of the `accelerate launch` above this process, or None when no launcher says."""
    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents()[:2]:
            command = parent.cmdline()
            # `python -m accelerate.commands.launch` is what the console script runs.
            names = [os.path.basename(part) for part in command[:3]]
            if any(name in ("accelerate", "accelerate-launch") or name.startswith(_LAUNCH_MODULE) for name in names):
                return _number_after(command, ("--num_processes", "--num-processes"))
    return None


def _number_after(command: list[str], flags: tuple[str, ...]) -> int | None:
    for position, part in enumerate(command):
        flag, equals, value = part.partition("=")
        if flag in flags:
            text = value if equals else "".join(command[position + 1 : position + 2])
            return int(text) if text.isdigit() else None
    return None


def say(accelerator: Accelerator, text: str) -> None:
    """Print once, whatever the number of processes, without tearing a progress bar."""
    if accelerator.is_main_process:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def shared_text(accelerator: Accelerator, make: Callable[[], str]) -> str:
    """A text that the main process makes and all know. It travels as bytes in a tensor, never as a pickle."""
    import torch

    encoded = make().encode() if accelerator.is_main_process else b""
    size = accelerator.reduce(torch.tensor([len(encoded)], device=accelerator.device), reduction="sum")
    letters = torch.zeros(int(size), dtype=torch.int32)
    letters[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.int32)
    summed = accelerator.reduce(letters.to(accelerator.device), reduction="sum").cpu()
    return bytes(summed.tolist()).decode()


def shared_folder(accelerator: Accelerator, make: Callable[[], Path]) -> Path:
    """A folder that the main process makes and all know."""
    return Path(shared_text(accelerator, lambda: str(make().absolute())))
