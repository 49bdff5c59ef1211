"""The data of a finished run, loaded again from its record, for what predictions.parquet does not hold: the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.config import DataSettings
from finetune.data.loader import LoadedData, load_data
from finetune.errors import DataError
from finetune.options import recorded_recipe

# Other kinds of task have loaders of their own.
TEXT_TASKS = ("text-classification", "text-generation")


def run_data(record: Mapping[str, Any], more: Mapping[str, str] | None = None) -> LoadedData:
    """The rows of a run, checked to be those that it saw.

    Args:
        record: run.json's dict.
        more: further roles to read, role -> column; the rows are first checked without them.

    Raises:
        FinetuneError: recipe or data are gone, or the data have changed since.
    """
    recipe = recorded_recipe(record).recipe
    settings = recipe.data
    if record["task"] not in TEXT_TASKS:
        raise DataError(
            f"The data of a {record['task']} run can't be read again here.", "Its predictions hold ids only."
        )
    roles = roles_of(settings)
    scores = getattr(recipe.objective, "kind", None) == "regression"
    data = load_data(settings, roles, scores=scores)
    if data.sha256 != record["data"]["sha256"]:
        raise DataError(
            f"{settings.source} has changed since the run: its rows no longer have the recorded SHA-256.",
            "Put the data back as they were.",
        )
    return load_data(settings, {**roles, **more}, scores=scores) if more else data


def roles_of(settings: DataSettings) -> dict[str, str | None]:
    """The columns of a task by role: what its data section has beyond every other, limits of the task left out."""
    return {
        name: getattr(settings, name)
        for name, field in type(settings).model_fields.items()
        if name not in DataSettings.model_fields and field.annotation == (str | None)
    }
