"""The `finetune` command: one module a group of commands in `finetune.commands`, each imported only for its parser."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from finetune import __version__
from finetune.credentials import Parser, masked
from finetune.errors import FinetuneError
from finetune.garbage import collect_seldom

_ABOUT = """\
Fine-tune pretrained models with results that are proven and runs that are exact.

  finetune run bert_cls                              a recipe on its own data
  finetune run bert_cls --data reviews.csv           the same on yours
  accelerate launch finetune/run.py --recipe bert_cls    the same on as many processes as you have
  finetune cp bert_cls my_task.py                    a recipe as a starting template
"""

_REFUSED_BY_THE_SYSTEM = {
    errno.ENOSPC: "Make room on that disk and run it again.",
    errno.EDQUOT: "Make room within your quota and run it again.",
    errno.EIO: "The disk is failing: look at the system's log, and name a folder on another one.",
    errno.EROFS: "Name a folder on a disk that can be written.",
    errno.EACCES: "Name a file or folder that you may use, or change its rights.",
    errno.EPERM: "Name a file or folder that you may use, or change its rights.",
    errno.ENAMETOOLONG: "Name a shorter path.",
}


def console() -> None:
    """Entry point of the `finetune` command."""
    collect_seldom()
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str], launched: bool = False) -> int:
    """Run one command; the exit status. A FinetuneError becomes one message on stderr, without a traceback.

    Args:
        launched: called by `accelerate launch`, where the recipe is a flag and there is one command.
    """
    parser = launch_parser() if launched else command_parser()
    arguments = parser.parse_args(argv)
    try:
        status = int(arguments.call(arguments))
        sys.stdout.flush()  # here, where a closed pipe is no surprise, and not while Python exits
        return status
    except FinetuneError as error:
        # Every process meets the same mistake; one of them says so.
        if os.environ.get("RANK", "0") == "0":
            print(masked(f"finetune: {type(error).__name__}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        # While training the loop handles it and the run can be resumed; here nothing was begun that could be lost.
        print("finetune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `finetune list | head` closed the pipe; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # What the disk or the user's rights refuse is no mistake of the program; any other OSError would be one.
        if error.errno not in _REFUSED_BY_THE_SYSTEM:
            raise
        where = f": {error.filename}" if error.filename else ""
        fix = _REFUSED_BY_THE_SYSTEM[error.errno]
        print(masked(f"finetune: {error.strerror}{where}\n  {fix}"), file=sys.stderr)
        return FinetuneError.exit_code


def command_parser() -> argparse.ArgumentParser:
    """The parser of `finetune` and all its commands."""
    from finetune.commands import (
        bench,
        cache,
        calibrate,
        compare,
        data,
        merge,
        plan,
        predict,
        recipes,
        replay,
        run,
        slices,
        verify,
    )

    parser: argparse.ArgumentParser = Parser(
        prog="finetune", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"finetune {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    recipes.add(commands)
    plan.add(commands)
    run.add(commands)
    predict.add(commands)
    merge.add(commands)
    bench.add(commands)
    compare.add(commands)
    slices.add(commands)
    calibrate.add(commands)
    replay.add(commands)
    verify.add(commands)
    data.add(commands)
    cache.add(commands)
    return parser


def launch_parser() -> argparse.ArgumentParser:
    """The parser of the launch line."""
    from finetune.commands import run

    return run.launch_parser()
