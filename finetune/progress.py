"""Progress bars with rate and ETA, on one process; in a log file a line now and then instead of thousands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_INTERVAL_S = 30.0


def progress_bar(accelerator: Accelerator | None, title: str, total: int, unit: str, done: int = 0) -> tqdm[Any]:
    """A bar for something long: it stays on the screen, and in a log file it writes a line every 30 s."""
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=unit,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        dynamic_ncols=True,
        disable=accelerator is not None and not accelerator.is_main_process,
    )


def passing_bar(accelerator: Accelerator, title: str, total: int, unit: str) -> tqdm[Any]:
    """A bar for something short: gone when it is done, and never in a log file."""
    quiet = not accelerator.is_main_process or not sys.stderr.isatty()
    return tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True, disable=quiet)
