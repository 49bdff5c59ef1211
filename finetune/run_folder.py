"""Run folders: made, found again for --resume, and pointed at by runs/latest."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError

RUNS = Path("runs")
LATEST = "latest"


def check_output(output: str | None) -> None:
    """Refuse an --output that could lose something. Called before anything is loaded."""
    if output is None:
        return
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output {output} is a file.", "Name a folder that doesn't exist yet.")
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(
            f"--output {output} is not empty.", "Name a new folder, or go on with that run: --resume " + output
        )


def make_run_folder(recipe_name: str, output: str | None) -> Path:
    """A new folder for a run; without --output runs/RECIPE-TIME, with a number when two start in one second."""
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        RUNS.mkdir(exist_ok=True)
        number = 1
        while True:
            folder = RUNS / (f"{recipe_name}-{stamp}" + (f"-{number}" if number > 1 else ""))
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        _point_latest(folder)
    return folder


def find_run(resume: str) -> Path:
    """The run folder that `--resume DIR|latest` means.

    Raises:
        ConfigError: there is none, or it is no run folder.
    """
    folder = RUNS / LATEST if resume == LATEST else Path(resume)
    if not (folder / "run.json").is_file():
        hint = "runs/latest points at the newest run of this folder." if resume == LATEST else "Name a run folder."
        raise ConfigError(f"--resume {resume}: {folder / 'run.json'} is not there.", hint)
    return folder.resolve() if resume == LATEST else folder


def read_record(folder: Path) -> dict[str, Any]:
    """A run folder's run.json.

    Raises:
        ConfigError: it is missing or damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there: {folder} is no run folder.", "Name a folder below runs/.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}.") from None
    if not isinstance(record, dict) or "recipe" not in record:
        raise ConfigError(f"{path} is not the record of a run.")
    return record


def _point_latest(folder: Path) -> None:
    link = RUNS / LATEST
    # Some file systems have no symbolic links; nothing but `--resume latest` needs this one.
    with contextlib.suppress(OSError, NotImplementedError):
        temporary = RUNS / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        os.replace(temporary, link)
