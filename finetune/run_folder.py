"""Run folders: made, found again for --resume, and pointed at by runs/latest."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError
from finetune.files import sync_folder

RUNS = Path("runs")
LATEST = "latest"


def check_output(output: str | None) -> None:
    """Refuse an --output that could lose something. Called before anything is loaded."""
    if output is None:
        return
    path = Path(output)
    try:
        path.exists()
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}.", "Name a folder that can be made.") from None
    parents = [parent for parent in path.parents if parent.exists()]
    if parents and not parents[0].is_dir():
        raise ConfigError(f"--output {output} lies below a file, {parents[0]}.", "Name a folder that can be made.")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output {output} is a file.", "Name a folder that doesn't exist yet.")
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(
            f"--output {output} is not empty.", "Name a new folder, or go on with that run: --resume " + output
        )


def make_run_folder(recipe_name: str, output: str | None) -> Path:
    """A new folder for a run; without --output runs/RECIPE-TIME, with a number when two start in one second.

    Raises:
        ConfigError: the disk is full or read-only, or a file is in the way.
    """
    try:
        if output is not None:
            folder = Path(output)
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.absolute().parent)
            return folder
        RUNS.mkdir(exist_ok=True)
        folder = _numbered(RUNS / f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}")
        sync_folder(RUNS)
    except OSError as error:
        raise ConfigError(
            f"The run folder {output or f'below {RUNS}/'} can't be made: {error.strerror} ({error.filename}).",
            "Name one with --output DIR, on a disk with room that you may write to.",
        ) from None
    _point_latest(folder)
    return folder


def _numbered(wanted: Path) -> Path:
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always another number")


def find_run(resume: str) -> Path:
    """The run folder that `--resume DIR|latest` means.

    Raises:
        ConfigError: there is none, or it is no run folder.
    """
    folder = RUNS / LATEST if resume == LATEST else Path(resume)
    try:
        found = (folder / "run.json").is_file()
    except OSError:  # a name longer than the file system takes
        found = False
    if not found:
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
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read: {error}.", "It is damaged: start a new run.") from None
    if not isinstance(record, dict) or "recipe" not in record:
        raise ConfigError(f"{path} is not the record of a run.", "Name a folder below runs/.")
    # Only what is read from it later; a run folder may have been edited or come from another version.
    kinds = {"status": str, "task": str, "recipe.name": str, "recipe.origin": str, "config": dict, "data.labels": list}
    for dotted, kind in kinds.items():
        value: Any = record
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ConfigError(f"{path} has no {dotted} as a run writes it.", "It is damaged: start a new run.")
    return record


def _point_latest(folder: Path) -> None:
    link = RUNS / LATEST
    # Some file systems have no symbolic links; nothing but `--resume latest` needs this one.
    with contextlib.suppress(OSError, NotImplementedError):
        temporary = RUNS / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        os.replace(temporary, link)
