"""`finetune merge`: a run's full model in another precision."""

from __future__ import annotations

import argparse

_ABOUT = """\
Write a finished run's full model, adapter merged, in float16, bfloat16 or float32, as plain transformers loads it.
It is loaded back and its logits on the run's first validation rows are compared with those of the trained model in
fp32: the largest difference and the predictions that change are printed and recorded in run.json. What may differ is
measured: four times what the pretrained model alone loses on the same rows in that precision. Above that nothing is
kept and the exit status is 1. A run without an adapter has nothing to merge; its model/ is written in the precision.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune merge` to the command line."""
    parser = subparsers.add_parser(
        "merge",
        help="a run's full model, adapter merged, in another precision",
        description=_ABOUT,
        epilog="Examples:\n  finetune merge runs/latest --dtype bfloat16\n"
        "  finetune merge runs/latest --dtype float16 --out small/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--dtype", required=True, choices=("float16", "bfloat16", "float32"), help="precision")
    parser.add_argument("--out", metavar="FOLDER", help="a new folder (default: RUN/model-DTYPE)")
    parser.set_defaults(call=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from finetune.merge import merge

    return merge(arguments.run, arguments.dtype, arguments.out)
