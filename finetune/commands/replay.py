"""`finetune replay`: the same run once more, and the first thing that came out otherwise."""

from __future__ import annotations

import argparse

_ABOUT = """\
Run the record of a finished run again, with the same recipe, settings, seed and threads, into a new folder; then name
the first difference in history, metrics, predictions or weights, or say that there is none. Versions, machine, recipe
and data that are no longer those of the record are listed as notes. The exit status is 0 when no bit differs, else 1.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune replay` to the command line."""
    parser = subparsers.add_parser(
        "replay",
        help="run a record again and name the first difference, or none",
        description=_ABOUT,
        epilog="Example:\n  finetune replay runs/bert_cls-20260101-120000 --output runs/again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder of the new run")
    parser.set_defaults(call=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from finetune.replay import replay

    return replay(arguments.run, arguments.output)
