"""What `finetune plan` predicts beside the run that it is about, for every recipe with data of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune.errors import TrainingError

# At least so many updates, and enough for a training of this length: of shorter ones, saving is a tenth.
UPDATES, LEAST_S = 30, 20.0
_PREDICTED = re.compile(r"^(training|evaluation|memory) +about (.*?)(?:,|$| of )", re.MULTILINE)
_UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


def planned_recipes() -> list[str]:
    """Recipes with data of their own."""
    from finetune.recipe import load_recipe
    from finetune.recipe_files import recipe_names

    return [name for name in recipe_names() if load_recipe(name).recipe.data.source]


def compare_plan(recipe: str, updates: int | None) -> dict[str, float]:
    """Predicted and real seconds of training (evaluation included), and MiB at the peak.

    Raises:
        TrainingError: the plan or the run failed.
    """
    from finetune.recipe import load_recipe

    def flags(count: int) -> list[str]:
        settings = [f"train.max_updates={count}"]
        if hasattr(load_recipe(recipe).recipe.objective, "baselines"):
            settings.append("objective.baselines=false")
        return [recipe, *(part for setting in settings for part in ("--set", setting))]

    def predict(count: int) -> tuple[dict[str, float], float]:
        found = parse_plan(_finetune("plan", *flags(count)))
        return found, found["training"] + found.get("evaluation", 0.0)

    count = updates or UPDATES
    predicted, predicted_s = predict(count)
    if updates is None and predicted_s < LEAST_S:
        count = round(count * LEAST_S / max(predicted_s, 0.1))
        predicted, predicted_s = predict(count)
    with tempfile.TemporaryDirectory(prefix="finetune-speed-") as temporary:
        run = Path(temporary) / "run"
        _finetune("run", *flags(count), "--output", str(run))
        record = json.loads((run / "run.json").read_text("utf-8"))
    return {
        "updates": record["updates"],
        "predicted_s": round(predicted_s, 1),
        "real_s": record["timing"]["train_s"],
        "predicted_mb": predicted["memory"],
        "real_mb": record["peak_rss_mb"],
    }


def parse_plan(text: str) -> dict[str, float]:
    """Seconds and MiB of a plan's lines, as they are rounded there."""
    found = {}
    for name, value in _PREDICTED.findall(text):
        if name == "memory":
            found[name] = float(value.removesuffix(" GiB")) * 1024
        else:
            found[name] = sum(
                float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) (h|min|s)\b", value)
            )
    return found


def _finetune(*arguments: str) -> str:
    call = [sys.executable, "-c", "from finetune.cli import console; console()", *arguments]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise TrainingError(
            f"finetune {' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr[-1500:]}"
        )
    return done.stdout
