"""`finetune data leaks`: its flags, checked before anything is read."""

from __future__ import annotations

import argparse

from finetune.errors import ConfigError

LEAST = 0.1


def leaks(args: argparse.Namespace) -> int:
    """Find and print leaks of a source, or of the data that a run saw; 0."""
    if args.run is None and args.metric is not None:
        raise ConfigError("--metric goes with --run.", "Leave it out, or name a finished run.")
    if args.run is not None and (args.overrides or args.json or args.recipe):
        raise ConfigError("--set, --recipe and --json don't go with --run.", "Its record says how the data are read.")
    # Below it, rows of no more than some common phrases in common would be near, and the index would miss others.
    if args.examples < 0 or (args.threshold is not None and not LEAST <= args.threshold <= 1.0):
        raise ConfigError(f"--threshold is from {LEAST} to 1, and --examples a number from 0 on.")
    from finetune.commands.data_check import recipe_of
    from finetune.image_settings import ImageData
    from finetune.leaks import leaks_of_run, leaks_of_source, print_leaks, print_scores

    if args.run is not None:
        record, found = leaks_of_run(args.path, args.run, args.threshold)
        print_leaks(found, args.examples, False)
        print_scores(args.run, record, found, args.metric)
        return 0
    recipe = recipe_of(args, "leaks").recipe
    if isinstance(recipe.data, ImageData) and args.threshold is not None:
        raise ConfigError("--threshold is for texts, but these are images.", "Leave it out.")
    print_leaks(leaks_of_source(recipe, args.threshold), args.examples, args.json)
    return 0
