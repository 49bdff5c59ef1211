"""`finetune slices`: where a finished run is good and where it is not."""

from __future__ import annotations

import argparse

_ABOUT = """\
The score of a finished run on parts of its test rows, with 95 % intervals: by length (four parts of about equal size,
in words), by class, or by the values of a column of the data (more than 12 numbers are cut into four parts).
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune slices` to the command line."""
    parser = subparsers.add_parser(
        "slices",
        help="scores of a finished run by length, class or a column, with intervals",
        description=_ABOUT,
        epilog="Examples:\n  finetune slices runs/latest --by length\n  finetune slices runs/latest --by source_site",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--by", required=True, metavar="length|class|COLUMN", help="what parts the rows")
    parser.add_argument("--metric", metavar="NAME", help="accuracy, macro_f1, mcc, spearman, perplexity, ...")
    parser.set_defaults(call=_slices)


def _slices(arguments: argparse.Namespace) -> int:
    from finetune.slices import print_slices

    return print_slices(arguments.run, arguments.by, arguments.metric)
