"""The launch line: `accelerate launch finetune/run.py --recipe bert_cls`; from a wheel `-m finetune.run`."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file, Python puts finetune/ itself on the path, where its modules would shadow others: the root instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.cli import main
from finetune.garbage import collect_seldom


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM to this process when its launcher dies: it saves, and no orphan is left behind.

    `accelerate launch` passes no signal on to the one process that it starts, and nobody can once it was killed.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


if __name__ == "__main__":
    end_with_launcher()
    collect_seldom()
    sys.exit(main(["run", *sys.argv[1:]], launched=True))
