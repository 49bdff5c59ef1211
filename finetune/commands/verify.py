"""`finetune verify resume`: is a killed and resumed run of one's own the same to the bit?"""

from __future__ import annotations

import argparse

_ABOUT = """\
Runs the recipe twice for a few updates, with your data and settings: once left alone, once killed (SIGKILL) and
resumed, twice. Then compares every file of the exported model, the predictions, the log and the last checkpoint. The
exit status is 0 when no bit differs.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune verify` to the command line."""
    from finetune.commands.run import add_settings

    parser = subparsers.add_parser(
        "verify",
        help="show that a killed and resumed run is exact",
        epilog="Examples:\n  finetune verify resume bert_cls",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_subparsers(metavar="WHAT", title="what is verified", required=True)
    resume = what.add_parser(
        "resume",
        help="kill and resume a run of a recipe, and compare it with one left alone",
        description=_ABOUT,
        epilog="Examples:\n  finetune verify resume bert_cls\n"
        "  finetune verify resume bert_cls --data reviews.csv --adapter lora --updates 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    resume.add_argument("recipe", metavar="RECIPE", help="name or path")
    resume.add_argument(
        "--updates", type=int, default=8, metavar="N", help="length of the runs, at least 3 (default: 8)"
    )
    add_settings(resume)
    resume.set_defaults(call=_resume)


def _resume(arguments: argparse.Namespace) -> int:
    import shlex
    import shutil
    import tempfile
    from pathlib import Path

    from finetune.commands.run import options_of
    from finetune.errors import ConfigError
    from finetune.options import RunOptions, command_line, resolve
    from finetune.verify import verify_resume

    if arguments.updates < 3:
        raise ConfigError(
            f"--updates {arguments.updates} is too few to kill a run twice on its way.", "Give 3 or more."
        )
    options = RunOptions(**options_of(arguments))  # type: ignore[arg-type]
    loaded = resolve(options)  # what is wrong with a setting is said before anything is started
    if hasattr(loaded.recipe.objective, "baselines"):
        options.overrides.append("objective.baselines=false")
    options.overrides.append("train.keep_outputs=false")  # what is compared is computed, each time
    flags = shlex.split(command_line(options))[3:]  # without `accelerate launch finetune/run.py`
    updates = arguments.updates
    kills = sorted({max(1, updates // 3), max(2, 2 * updates // 3)})
    folder = Path(tempfile.mkdtemp(prefix="finetune-verify-"))
    print(
        f"{arguments.recipe}: {updates} updates left alone; then killed at updates {kills} and resumed, in {folder}",
        flush=True,
    )
    different = verify_resume(flags, updates, kills, folder)
    if different:
        print(f"NOT exact; both runs are kept in {folder}. What differs:")
        print("\n".join(f"  {name}" for name in different))
        return 1
    shutil.rmtree(folder)
    print("Exact: model, predictions, log and checkpoint have the same bits.")
    return 0
