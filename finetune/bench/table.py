"""Benchmark tables as files: rows (methods), columns (data and metric), seeds, and what was published elsewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.config import Section, from_mapping, unknown_key
from finetune.data.near import near
from finetune.errors import ConfigError
from finetune.evaluation.stored import METRICS
from finetune.files import sha256_file
from finetune.recipe_files import code_hash, recipe_path, recipes_folder

Method = Literal["fine-tune", "majority", "tfidf", "tfidf_words", "probe", "kshot_probe"]
FIXED: dict[str, str] = {
    "majority": "the commonest class of the training rows",
    "tfidf": "TF-IDF of words and pairs, logistic regression with C=10",
    "tfidf_words": "TF-IDF of words, logistic regression, scikit-learn's defaults",
    "probe": "logistic regression on the frozen encoder",
    "kshot_probe": "logistic regression on k rows a class of the frozen encoder, drawn as MTEB draws them",
}
# These give the same answer for every seed, so one run is all there is, unless the seed draws their training rows.
SEEDLESS = frozenset({"majority", "tfidf", "tfidf_words", "probe"})


class Search(Section):
    """The same small search for every method, judged on validation rows: equal budgets."""

    key: str
    """The setting that is searched, for example train.lr."""
    values: Annotated[list[str | int | float], Field(min_length=2)]
    """Tried with the table's first seed; the best goes on with the others."""


class Row(Section):
    """A method."""

    name: str
    recipe: str
    """Name of a packaged recipe, or a path from the table's folder; a method that trains nothing takes its model."""
    method: Method = "fine-tune"
    """fine-tune, or what is measured instead: majority, tfidf, tfidf_words, probe, kshot_probe."""
    adapter: str | None = None
    set: list[str] = Field(default_factory=list)
    """Settings, KEY=VALUE, applied before the column's."""
    shots: Annotated[int, Field(ge=1)] | None = None
    """Rows of each class, for kshot_probe."""
    search: Search | None = None
    columns: list[str] | None = None
    """The columns that this row has; `none` for all."""

    @model_validator(mode="after")
    def _fits(self) -> Row:
        if (self.shots is None) == (self.method == "kshot_probe"):
            raise ValueError("shots goes with method=kshot_probe, and that with shots")
        if self.method != "fine-tune" and (self.adapter is not None or self.search is not None):
            raise ValueError(f"adapter and search go with method=fine-tune, not with {self.method}")
        return self


class Column(Section):
    """Data and a metric."""

    name: str
    data: str
    """A data card, a hub id, or a file or folder: from the table's folder, or below $FINETUNE_DATA as data://PATH."""
    metric: str = "accuracy"
    recipe: str | None = None
    """Instead of the rows' recipe, for data of another shape: bert_pair for pairs of texts."""
    set: list[str] = Field(default_factory=list)
    """Settings for every row."""


class Reference(Section):
    """A published number."""

    row: str
    column: str
    value: float
    """In the unit of the table: shares in per cent."""
    source: str
    protocol: Literal["same", "analogue"]
    """same: `finetune bench check` holds us to it. analogue: for orientation, what differs stands in `source`."""
    tolerance: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="after")
    def _tolerance(self) -> Reference:
        if (self.protocol == "same") != (self.tolerance is not None):
            raise ValueError(
                f'{self.row} on {self.column}: write `tolerance = 1.5` beside `protocol = "same"`, or take '
                '`protocol = "analogue"` without one'
            )
        return self


class Content(Section):
    """What stands in a table's file."""

    title: str
    about: str = ""
    """What the table answers and how it is cut; said under its title."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, default_factory=lambda: [0, 1, 2])]
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each run: fixed, so that any number of workers gives the same records."""
    rows: Annotated[list[Row], Field(min_length=1)]
    columns: Annotated[list[Column], Field(min_length=1)]
    references: list[Reference] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names(self) -> Content:
        for kind, some in (("rows", self.rows), ("columns", self.columns)):
            names = [one.name for one in some]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are named {twice[0]!r}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one stands there twice")
        known = {"row": [row.name for row in self.rows], "column": [column.name for column in self.columns]}
        named = [("references", "row", some.row) for some in self.references]
        named += [("references", "column", some.column) for some in self.references]
        named += [(f"rows: {row.name}", "column", name) for row in self.rows for name in row.columns or []]
        for where, kind, name in named:
            if name not in known[kind]:
                meant = near(name, known[kind])
                raise ValueError(f"{where}: no {kind} {name!r}" + (f" (did you mean {meant!r}?)" if meant else ""))
        metrics = [metric for some in METRICS.values() for metric in some]
        for column in self.columns:
            if column.metric not in metrics:
                meant = near(column.metric, metrics)
                raise ValueError(
                    f"columns: {column.metric} is no metric" + (f" (did you mean {meant}?)" if meant else "")
                )
        return self


@dataclass(frozen=True)
class Table:
    """A table's content with its name and file."""

    name: str
    path: Path
    content: Content
    sha256: str
    codes: Mapping[str, str]
    """Recipe, as rows and columns name it, to the hash of its code."""

    @property
    def argument(self) -> str:
        """What `finetune bench` is given to find it, in its own folder."""
        return self.name if self.path.parent == tables_folder() else self.path.name

    def has(self, row: Row, column: Column) -> bool:
        """Whether the table has that cell."""
        return row.columns is None or column.name in row.columns

    def seeds_of(self, row: Row, column: Column) -> list[int]:
        """The seeds of a cell's runs: the first alone where a seed changes nothing."""
        drawn = any(setting.partition("=")[0].strip() == "data.shots" for setting in (*row.set, *column.set))
        return self.content.seeds[:1] if row.method in SEEDLESS and not drawn else self.content.seeds


def recipe_of(path: Path, recipe: str) -> str:
    """A recipe of a table as --recipe takes it: a name, or a path from the table's folder."""
    return str(path.parent / recipe) if recipe.endswith(".py") else recipe


def tables_folder() -> Path:
    """Where the shipped tables stand."""
    return recipes_folder() / "tables"


def table_names() -> list[str]:
    """Names of the shipped tables."""
    return sorted(path.stem for path in tables_folder().glob("*.toml"))


def load_table(name_or_path: str) -> Table:
    """A shipped table by name, or any by the path of its .toml file.

    Raises:
        ConfigError: no such table, no TOML (with the line), or a key that is unknown or wrong.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in table_names():
            if len(path.parts) > 1:
                raise ConfigError(f"{name_or_path} is no .toml file.", "A table is one; `finetune bench list`.")
            if Path(f"{name_or_path}.toml").is_file():
                raise ConfigError(f"{name_or_path} is no shipped table.", f"Did you mean {name_or_path}.toml?")
            raise unknown_key(name_or_path, table_names(), "is no table; `finetune bench list` shows them")
        path = tables_folder() / f"{name_or_path}.toml"
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no table file {path}.", "`finetune bench list` shows the shipped ones.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}.", "A table is a TOML file; see recipes/tables/.") from None
    content = _content(values, path)
    recipes = [row.recipe for row in content.rows] + [column.recipe for column in content.columns if column.recipe]
    codes = {recipe: code_hash(recipe_path(recipe_of(path, recipe))) for recipe in dict.fromkeys(recipes)}
    return Table(path.stem, path, content, sha256_file(path), codes)


def _content(values: dict[str, Any], path: Path) -> Content:
    """A table's content; errors name a row or column by its name, where pydantic counts from 0."""
    try:
        found: Content = from_mapping(Content, values, str(path))
    except ConfigError as error:

        def named(match: re.Match[str]) -> str:
            one = values[match["kind"]][int(match["number"])]
            name = one.get("name", one.get("row", "")) if isinstance(one, dict) else ""
            return f"{match['kind']} {str(name)!r}: " if name else match[0]

        problem = re.sub(r"(?P<kind>rows|columns|references)\.(?P<number>\d+)(\.|: )", named, error.problem)
        raise ConfigError(problem, error.fix or "CONTRIBUTING.md lists the keys of a table.") from None
    return found
