"""`finetune run`, and the same flags for the launch line."""

from __future__ import annotations

import argparse

from finetune.credentials import Parser

_ABOUT = """\
Fine-tune with a recipe: load data and model, measure the baselines, train, export the best checkpoint, judge it on
the test rows, and leave a folder with everything that is needed to use the model and to defend the result.

Rows and updates are counted over all processes, so the same flags mean the same run on 1 CPU and on 8 GPUs.
"""
_EXAMPLES = """\
Examples:
  {command}bert_cls
  {command}bert_cls --data reviews.csv --set data.text=review --set data.label=stars
  {command}bert_cls --set train.lr=3e-5 --set train.epochs=2 --seed 1
  {command}./my_task.py --output runs/my_task
  {resume}--resume latest

`finetune show RECIPE` lists every setting that --set takes.
"""

ADAPTER_HELP = (
    "what is trained: full, frozen (the head only), layers (upper layers, rates by layer), bitfit (biases), lora, "
    "adalora, ia3, or peft (any method of the PEFT library); then --set adapter.KEY=VALUE"
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune run` to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="fine-tune with a recipe, judge the result, leave a record",
        description=_ABOUT,
        epilog=_EXAMPLES.format(command="finetune run ", resume="finetune run "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name (see `finetune list`) or path of a recipe")
    add_settings(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's own folder; one that is not empty is refused")
    parser.add_argument("--resume", metavar="DIR|latest", help="go on with an interrupted run, in its folder")
    parser.set_defaults(call=_run)


def launch_parser() -> argparse.ArgumentParser:
    """The parser of `accelerate launch finetune/run.py`."""
    parser = Parser(
        prog="accelerate launch finetune/run.py",
        description=_ABOUT,
        epilog=_EXAMPLES.format(
            command="accelerate launch finetune/run.py --recipe ", resume="accelerate launch finetune/run.py "
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=["run"], help=argparse.SUPPRESS)
    parser.add_argument("--recipe", metavar="NAME|PATH", help="name (see `finetune list`) or path of a recipe")
    add_settings(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's own folder; one that is not empty is refused")
    parser.add_argument("--resume", metavar="DIR|latest", help="go on with an interrupted run, in its folder")
    parser.set_defaults(call=_run)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that change a recipe's settings; `finetune plan` and `finetune show` take them too."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting, for example train.lr=3e-5; may be repeated",
    )
    parser.add_argument("--data", metavar="CARD|FILE|FOLDER|HUB_ID", help="train on this instead (sets data.source)")
    parser.add_argument("--adapter", metavar="NAME", help=ADAPTER_HELP)
    parser.add_argument("--seed", type=int, metavar="N", help="sets train.seed")


def options_of(arguments: argparse.Namespace) -> dict[str, object]:
    """The parsed flags as RunOptions takes them."""
    names = ("recipe", "overrides", "data", "adapter", "seed", "output", "resume")
    return {name: getattr(arguments, name, None) for name in names}


def _run(arguments: argparse.Namespace) -> int:
    from finetune.experiment import run
    from finetune.options import RunOptions

    return run(RunOptions(**options_of(arguments)))  # type: ignore[arg-type]
