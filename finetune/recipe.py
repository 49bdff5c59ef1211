"""Recipes: a typed config and one function that builds a task, found by name or by path."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializeAsAny, ValidationError

from finetune.adapters import Adapter, Full, adapter_named
from finetune.config import (
    DataSettings,
    ModelSettings,
    Section,
    TrainSettings,
    apply_override,
    reasons,
    settings_of,
)
from finetune.errors import ConfigError
from finetune.recipe_files import recipe_names, recipe_path, recipe_summary, recipe_tree, recipes_folder, source_hash

if TYPE_CHECKING:
    from finetune.task import Task


_START_ANEW = "The record was changed by hand or is damaged: start a new run."


class Recipe(Section):
    """Settings by section, and the function that turns them into a task.

    A recipe module defines `config() -> Recipe`. It derives by function: call another recipe's `config()`, change
    what differs, return it.
    """

    build: Callable[[Any], Any] = Field(exclude=True)
    """`build(recipe) -> Task`: loads data and model. Not a setting."""
    model: SerializeAsAny[ModelSettings]
    data: SerializeAsAny[DataSettings]
    objective: SerializeAsAny[Section]
    train: SerializeAsAny[TrainSettings] = Field(default_factory=TrainSettings)
    adapter: SerializeAsAny[Adapter] = Field(default_factory=Full)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from.

    Attributes:
        name: module name, also of a recipe given by path.
        origin: `packaged`, or the path of the file.
        sha256: over the recipe's source and that of every base it derives from.
    """

    name: str
    origin: str
    sha256: str
    summary: str
    recipe: Recipe

    def build(self) -> Task:
        return self.recipe.build(self.recipe)

    def resolved(self) -> dict[str, Any]:
        """Every setting, JSON-able, by section."""
        return self.recipe.model_dump(mode="json")


def base(name: str) -> types.ModuleType:
    """The module of a packaged recipe, to derive from: `c = base("bert_cls").config()`. Works from any folder."""
    return _module(recipes_folder() / f"{name}.py") if name in recipe_names() else _module(recipe_path(name))


def load_recipe(name_or_path: str) -> LoadedRecipe:
    """Import a recipe and call its `config()`.

    Raises:
        ConfigError: no such recipe, an error in it (with its line), no `config`, or not a Recipe returned.
    """
    path = recipe_path(name_or_path)
    module = _module(path)
    if not callable(getattr(module, "config", None)):
        raise ConfigError(f"{path} defines no config().", "A recipe has `def config() -> Recipe:`; see `finetune cp`.")
    with _mistakes_named(path):
        recipe = module.config()
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{path}: config() returned {type(recipe).__name__}, not a finetune.Recipe.")
    packaged = path.parent == recipes_folder()
    return LoadedRecipe(
        path.stem, "packaged" if packaged else str(path), source_hash(path), recipe_summary(path), recipe
    )


def override(loaded: LoadedRecipe, overrides: list[str]) -> None:
    """Apply `key=value` overrides in order; `adapter=NAME` puts another adapter in place of the recipe's."""
    for item in overrides:
        key, _, value = item.partition("=")
        if key.strip() == "adapter":
            loaded.recipe.adapter = adapter_named(value.strip())
        else:
            apply_override(loaded.recipe, item, loaded.name)


def apply_resolved(loaded: LoadedRecipe, resolved: dict[str, Any]) -> None:
    """Put a record's resolved settings back into a recipe.

    Raises:
        ConfigError: names the setting that the record lacks, or whose value is none that it can have.
    """
    adapter = resolved.get("adapter")
    if not isinstance(adapter, dict) or "name" not in adapter:
        raise ConfigError("The record lacks the setting adapter.name.", _START_ANEW)
    loaded.recipe.adapter = adapter_named(adapter["name"])
    for dotted, section, field in list(settings_of(loaded.recipe)):
        value: Any = resolved
        for part in dotted.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ConfigError(f"The record lacks the setting {dotted}; it was written by another version.")
            value = value[part]
        try:
            setattr(section, field, value)
        except ValidationError as error:
            raise ConfigError(f"The record has {dotted}={value}: {reasons(error)}.", _START_ANEW) from None


def _module(path: Path) -> types.ModuleType:
    recipe_tree(path)
    name = f"finetune_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} can't be imported.")
    module = importlib.util.module_from_spec(spec)
    # Loader workers look a collate function's module up by name.
    sys.modules[name] = module
    with _mistakes_named(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _mistakes_named(path: Path) -> Iterator[None]:
    """What goes wrong while a recipe's own code runs is a mistake in that file: name its line, show no traceback."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{path} imports what is not installed: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path} derives from itself.", "base() takes another recipe.") from None
    except (
        NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, OSError, AssertionError,
        RuntimeError,
    ) as error:  # fmt: skip
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        what = reasons(error, Section) if isinstance(error, ValidationError) else str(error)
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {what}.") from None
