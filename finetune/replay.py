"""`finetune replay`: runs a record again and says what differs first, or that nothing does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import flattened, settings_of
from finetune.errors import ConfigError, TrainingError
from finetune.files import sha256_file
from finetune.history import read_history
from finetune.options import recorded_name, recorded_recipe
from finetune.run_folder import check_output, read_record

if TYPE_CHECKING:
    from finetune.recipe import LoadedRecipe


def replay(run: str, output: str) -> int:
    """Run a record again into a new folder and compare; the exit status is 0 when no bit differs, else 1.

    Raises:
        ConfigError: no completed run there, a recipe that is gone, or an output folder that is taken.
        TrainingError: the replay itself failed.
    """
    folder, other = Path(run), Path(output)
    record = read_record(folder)
    if record["status"] != "completed":
        raise ConfigError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    processes = record["hardware"]["processes"]
    if processes != 1 and record["config"]["train"].get("deterministic") != "elastic":
        raise ConfigError(
            f"{run} ran with {processes} processes, and a replay with one is equal up to rounding only.",
            "Replay runs of one process, or those with train.deterministic=elastic.",
        )
    check_output(output)
    loaded = recorded_recipe(record)  # what is wrong with the record is said before anything is started
    flags = settings_flags(loaded, record["hardware"].get("threads"))
    print(f"replaying {run} into {output}", flush=True)
    flags += ["--set", "train.keep_outputs=false"]  # what is compared is computed, not read
    command = [sys.executable, "-m", "finetune.run", "--recipe", recorded_name(record), *flags]
    done = subprocess.run([*command, "--output", output], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise TrainingError(f"The replay ended with status {done.returncode}; its own message stands above.")
    again = read_record(other)
    for change in circumstances(record, again):
        print(f"note: {change}")
    found = first_difference(folder, other)
    print(
        f"First difference: {found}" if found else "No difference: history, metrics, predictions and weights are equal."
    )
    return 1 if found else 0


def settings_flags(loaded: LoadedRecipe, threads: int | None) -> list[str]:
    """The flags that give a recipe all its settings anew.

    Args:
        threads: as they were in the run, whatever its setting said: sums are cut by them.
    """
    flags = ["--adapter", str(loaded.resolved()["adapter"]["name"])]
    for dotted, section, field in settings_of(loaded.recipe):
        if dotted != "adapter.name":
            value = section.model_dump(mode="json")[field]
            flags += ["--set", f"{dotted}={_text(threads if dotted == 'train.threads' and threads else value)}"]
    return flags


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def circumstances(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What was not the same before anything was computed: recipe, data, model, versions, machine."""
    named = {"recipe": "hash", "data": "sha256", "model": "sha256"}
    pairs = {f"the {part}": (one[part].get(key), other[part].get(key)) for part, key in named.items()}
    pairs["precision"] = (one.get("precision"), other.get("precision"))
    for part in ("versions", "hardware"):
        before, after = one.get(part) or {}, other.get(part) or {}
        pairs |= {key: (before.get(key), after.get(key)) for key in sorted({*before, *after} - {"memory_gb"})}
    pairs["commit"] = (one.get("commit"), other.get("commit"))
    return [f"{name} was {before}, is now {after}" for name, (before, after) in pairs.items() if before != after]


def first_difference(one: Path, other: Path) -> str | None:
    """The first thing that differs, in the order in which a run makes them; None when all is equal to the bit."""
    histories = [read_history(run / "history.jsonl") for run in (one, other)]
    for number, (before, after) in enumerate(zip(*histories, strict=False), start=1):
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                return f"history.jsonl, line {number}, {key}: {before.get(key)}, replayed {after.get(key)}"
    if len(histories[0]) != len(histories[1]):
        return f"history.jsonl has {len(histories[0])} lines, replayed {len(histories[1])}"
    records = [read_record(run) for run in (one, other)]
    metrics = [flattened({"metrics": record["metrics"]}) for record in records]
    for key in {**metrics[0], **metrics[1]}:
        if metrics[0].get(key) != metrics[1].get(key):
            return f"run.json, {key}: {metrics[0].get(key)}, replayed {metrics[1].get(key)}"
    names = ["predictions.parquet"]
    for part in ("model", "adapter"):
        names += sorted({str(p.relative_to(run)) for run in (one, other) for p in (run / part).rglob("*.safetensors")})
    for name in names:
        paths = (one / name, other / name)
        if not all(path.is_file() for path in paths):
            return f"{name} is in one run only"
        if sha256_file(paths[0]) != sha256_file(paths[1]):
            return name
    return None
