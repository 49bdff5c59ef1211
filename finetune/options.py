"""The flags of a run: from the command line to a resolved recipe, and back to a line that runs the same again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError
from finetune.run_folder import find_run, read_record

if TYPE_CHECKING:
    from finetune.recipe import LoadedRecipe


@dataclass(frozen=True)
class RunOptions:
    """The flags of the launch line and of `finetune run`."""

    recipe: str | None = None
    overrides: list[str] = field(default_factory=list)
    data: str | None = None
    adapter: str | None = None
    seed: int | None = None
    output: str | None = None
    resume: str | None = None


def resolve(options: RunOptions) -> LoadedRecipe:
    """The recipe with every override applied; for --resume the settings of the record, then the overrides.

    Raises:
        ConfigError: a recipe, key or value that does not exist.
    """
    from finetune.config import flattened
    from finetune.credentials import refuse_credentials
    from finetune.recipe import apply_resolved, load_recipe, override

    name, record = options.recipe, None
    if options.resume is not None:
        if options.output is not None:
            raise ConfigError("--output does not go with --resume.", "A resumed run stays in its folder.")
        record = read_record(find_run(options.resume))
        name = name or recorded_name(record)
    if name is None:
        raise ConfigError("No recipe is named.", "Give --recipe NAME or PATH; `finetune list` shows the names.")
    loaded = load_recipe(name)
    if record is not None:
        apply_resolved(loaded, record["config"])
    flags = {"adapter": options.adapter, "data.source": options.data, "train.seed": options.seed}
    # The adapter first, so that --set adapter.rank=4 finds the adapter that --adapter put there.
    override(loaded, [f"{key}={value}" for key, value in flags.items() if value is not None])
    override(loaded, options.overrides)
    given = {"--set" if flag == "overrides" else f"--{flag}": value for flag, value in vars(options).items()}
    refuse_credentials(given | flattened(loaded.resolved()))
    return loaded


def recorded_name(record: Mapping[str, Any]) -> str:
    """What finds a record's recipe again: its name, or the path of its file."""
    origin = record["recipe"]["origin"]
    return str(record["recipe"]["name"] if origin == "packaged" else origin)


def recorded_recipe(record: Mapping[str, Any]) -> LoadedRecipe:
    """A record's recipe with the settings that it ran with.

    Raises:
        ConfigError: the recipe is gone, or lacks a setting that the record has.
    """
    from finetune.recipe import apply_resolved, load_recipe

    loaded = load_recipe(recorded_name(record))
    apply_resolved(loaded, record["config"])
    return loaded


def command_line(options: RunOptions) -> str:
    """The line that runs the same again: from the options, so that nothing else of the command line is written down."""
    flags = {"--data": options.data, "--adapter": options.adapter, "--seed": options.seed, "--resume": options.resume}
    line = ["accelerate", "launch", "finetune/run.py"]
    pairs = [("--recipe", options.recipe), *(("--set", override) for override in options.overrides), *flags.items()]
    for flag, value in pairs:
        if value is not None:
            # Joined by "=", a value that begins with a dash isn't taken for a flag.
            line += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    return shlex.join(line)
