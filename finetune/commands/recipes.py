"""`finetune list`, `show`, `cp` and `diff`: recipes as things to look at, copy and compare with their origin."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune.errors import ConfigError


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the recipe commands to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    listing = subparsers.add_parser(
        "list",
        help="the recipes, one line each",
        description="The recipes that come with the toolkit, one line each.",
        epilog="Example:\n  finetune list",
        formatter_class=raw,
    )
    listing.set_defaults(call=_list)

    show = subparsers.add_parser(
        "show",
        help="a recipe's settings, with what each means",
        description="Every setting of a recipe, after all overrides, with what it means: these are what --set takes.",
        epilog="Examples:\n  finetune show bert_cls\n  finetune show bert_cls --set train.lr=3e-5",
        formatter_class=raw,
    )
    show.add_argument("recipe", metavar="RECIPE", help="name or path")
    from finetune.commands.run import add_settings

    add_settings(show)
    show.set_defaults(call=_show)

    copy = subparsers.add_parser(
        "cp",
        help="copy a recipe as a starting template",
        description="Copy a recipe; the copy runs by path and says where it came from. Nothing is overwritten.",
        epilog="Examples:\n  finetune cp bert_cls my_task.py\n  finetune cp bert_cls my_folder/",
        formatter_class=raw,
    )
    copy.add_argument("recipe", metavar="RECIPE", help="name or path")
    copy.add_argument("destination", metavar="DEST", help="new .py file, or a folder that exists")
    copy.set_defaults(call=_copy)

    diff = subparsers.add_parser(
        "diff",
        help="what differs between a copied recipe and its origin",
        description="The differences of a copied recipe from the recipe of this version that it was copied from.",
        epilog="Example:\n  finetune diff my_task.py",
        formatter_class=raw,
    )
    diff.add_argument("recipe", metavar="PATH", help="a recipe made by `finetune cp`")
    diff.set_defaults(call=_diff)


def _list(_: argparse.Namespace) -> int:
    from finetune.recipe_files import recipe_names, recipe_path, recipe_summary

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {recipe_summary(recipe_path(name))}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from finetune.commands.run import options_of
    from finetune.config import settings_of
    from finetune.options import RunOptions, resolve

    loaded = resolve(RunOptions(**options_of(arguments)))  # type: ignore[arg-type]
    print(f"{loaded.name} ({loaded.origin}, sha256 {loaded.sha256[:12]}): {loaded.summary}\n")
    for dotted, section, name in settings_of(loaded.recipe):
        value = getattr(section, name)
        text = "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{dotted}={text}")
        print(f"    {' '.join((type(section).model_fields[name].description or '').split())}".rstrip())
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    from finetune import __version__
    from finetune.recipe_files import COPIED_FROM, read_recipe, recipe_path, source_hash

    source = recipe_path(arguments.recipe)
    destination = Path(arguments.destination)
    if destination.is_dir() or arguments.destination.endswith("/"):
        destination = destination / source.name
    elif destination.suffix != ".py":
        raise ConfigError(f"{destination} is no .py file and no folder.", f"For example {destination}.py")
    if not destination.parent.is_dir():
        raise ConfigError(f"The folder {destination.parent} does not exist.", f"mkdir -p {destination.parent}")
    origin = f"{COPIED_FROM} {source.stem}, finetune {__version__}, sha256 {source_hash(source)}\n"
    text = read_recipe(source)
    try:
        with destination.open("x", encoding="utf-8") as file:
            file.write(origin + text)
    except FileExistsError:
        raise ConfigError(f"{destination} exists already.", "Name another file; nothing is overwritten.") from None
    except OSError as error:
        raise ConfigError(f"{destination} can't be written: {error.strerror}.") from None
    print(f"{destination}  run it: finetune run {destination if len(destination.parts) > 1 else f'./{destination}'}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    import difflib

    from finetune.recipe_files import copied_from, read_recipe, recipe_names, recipe_path

    path = recipe_path(arguments.recipe)
    origin = copied_from(path)
    if origin is None:
        raise ConfigError(f"{path} does not say where it was copied from.", "`finetune cp` writes that line.")
    name, version, unchanged = origin
    if name not in recipe_names():
        raise ConfigError(
            f"{path} was copied from {name}, which is no packaged recipe.", "Compare the two files with `diff`."
        )
    if not unchanged:
        print(f"note: {name} itself has changed since it was copied from finetune {version}", file=sys.stderr)
    base, own = (read_recipe(some).splitlines(True) for some in (recipe_path(name), path))
    sys.stdout.writelines(difflib.unified_diff(base, own[1:], name, str(path), n=2))
    return 0
