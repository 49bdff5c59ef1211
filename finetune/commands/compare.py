"""`finetune compare`: paired tests between finished runs."""

from __future__ import annotations

import argparse

_ABOUT = """\
Compare finished runs over the same test rows: paired bootstrap intervals, Holm's correction over all pairs, and one of
"better", "worse" or "not distinguishable" for each; then rows that only one of them gets right. Runs that saw different
data are refused, unless only data.max_train_rows differs. Nothing is trained and no model is loaded.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune compare` to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="which of some finished runs is better, by paired tests on the same rows",
        description=_ABOUT,
        epilog="Examples:\n  finetune compare runs/full runs/lora runs/adalora\n"
        "  finetune compare runs/full runs/lora --metric macro_f1 --examples 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two or more run folders")
    parser.add_argument("--metric", metavar="NAME", help="accuracy, macro_f1, mcc, spearman, perplexity, ...")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="rows shown of each kind (default: 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from finetune.errors import ConfigError

    if len(arguments.runs) < 2:
        raise ConfigError("finetune compare needs two runs or more.", "For example: finetune compare runs/a runs/b")
    if arguments.examples < 0 or arguments.seed < 0:
        raise ConfigError("--examples and --seed are numbers from 0 on.")

    from finetune.compare import compare

    return compare(arguments.runs, arguments.metric, arguments.examples, arguments.seed)
