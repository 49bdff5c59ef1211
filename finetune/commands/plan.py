"""`finetune plan`: what a run would do and cost, without training."""

from __future__ import annotations

import argparse


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune plan` to the command line."""
    from finetune.commands.run import add_settings

    parser = subparsers.add_parser(
        "plan",
        help="what a run would do and cost, without training",
        description="Updates, parameters, rows cut per class, padding waste, and time and memory estimated from a few\n"
        "timed batches. Nothing is trained and no run folder is made.",
        epilog="Examples:\n  finetune plan bert_cls\n  finetune plan bert_cls --data reviews.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name or path")
    add_settings(parser)
    parser.set_defaults(call=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from finetune.commands.run import options_of
    from finetune.estimate import print_plan
    from finetune.options import RunOptions

    return print_plan(RunOptions(**options_of(arguments)))  # type: ignore[arg-type]
