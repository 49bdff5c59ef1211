"""The launch line: `accelerate launch finetune/run.py --recipe bert_cls`; from a wheel `-m finetune.run`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file, Python puts finetune/ itself on the path, where its modules would shadow others: the root instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]], launched=True))
