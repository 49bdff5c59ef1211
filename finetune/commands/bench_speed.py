"""`finetune bench speed`: the same work beside its peers, in pairs, as a table with ratios and their spread."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

_ABOUT = """\
Time the same updates on the same rows here and by the peers of tests/peers (transformers' Trainer, PEFT, plain
torchvision, SetFit), each side a process of its own, side after side in pairs. Writes a JSON record a side, and
speed.json, speed.md and speed.png made of them. A stopped session goes on with the same line.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `speed` to `finetune bench`."""
    parser = subparsers.add_parser(
        "speed",
        help="how long the same updates take here and elsewhere",
        description=_ABOUT,
        epilog="Examples:\n  finetune bench speed --list\n  finetune bench speed --rows bert_full,gpt2_lora --pairs 5\n"
        "  taskset -c 0 finetune bench speed      with one thread: threads are the cores that it may use",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", metavar="NAME,...", help="only these (default: all)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="pairs of each row (default: 5)")
    parser.add_argument("--updates", type=int, metavar="N", help="timed updates in place of each row's own: a try")
    parser.add_argument("--out", metavar="FOLDER", help="records and documents (default: runs/bench_speed)")
    parser.add_argument("--busy", action="store_true", help="measure although the machine does other work; is recorded")
    parser.add_argument("--readme", action="store_true", help="write the short table into the checkout's README")
    parser.add_argument("--list", action="store_true", help="show the rows with their goals, and do nothing")
    parser.set_defaults(call=_speed)


def _speed(arguments: argparse.Namespace) -> int:
    from finetune.bench.speed.rows import chosen, listing

    if arguments.list:
        print(listing())
        return 0
    from finetune.errors import ConfigError

    for name in ("pairs", "updates"):
        value: Any = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is none.", "Give 1 or more.")
    rows, singles = chosen(arguments.rows)

    from finetune.bench.speed.session import Session, peers_program, refuse_busy
    from finetune.bench.speed.summary import documents, summary, write_readme

    peers_program()
    load = refuse_busy(arguments.busy)
    folder = Path(arguments.out or "runs/bench_speed")
    session = Session(folder, arguments.pairs, arguments.updates, load if arguments.busy else 0.0)
    session.check(rows, singles)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing that is timed waits for a network
    stopped_by = session.run(rows, singles)
    text = documents(folder)
    if stopped_by:
        print(f"Interrupted; the same command goes on. What there is so far is in {folder}/speed.md.")
        return 128 + stopped_by
    print(text, end="")
    if arguments.readme:
        write_readme(peers_program().parents[2] / "README.md", summary(folder))
    print(f"Written to {folder}/speed.json, speed.md and speed.png.")
    return 0
