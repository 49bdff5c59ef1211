"""A session of `finetune bench speed`: side after side, each a process of its own; goes on where it was stopped."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from finetune.bench.children import Children, Stopped
from finetune.bench.speed import data_path
from finetune.bench.speed.plans import compare_plan, planned_recipes
from finetune.bench.speed.rows import DATA_PATH, OURS, PLANS, STARTING, Row
from finetune.bench.speed.slices import prepare
from finetune.bench.speed.starting import starting_times
from finetune.data.cache import say
from finetune.errors import ConfigError, TrainingError
from finetune.files import write_json
from finetune.hardware import choose_precision, describe, use_threads
from finetune.recipe_files import recipes_folder
from finetune.record import commit, versions

# A machine that does nothing else is below it; half of a core's work would show in every number.
BUSY_LOAD = 0.3


class Session:
    """Measurements of one machine, in a folder.

    Attributes:
        folder: holds records/, slices/ and the documents.
        updates: timed updates in place of each row's own, or None.
        busy: the load average that `--busy` allowed, or 0; each record says it.
    """

    def __init__(self, folder: Path, pairs: int, updates: int | None, busy: float = 0.0) -> None:
        self.folder, self.pairs, self.updates, self.busy = folder, pairs, updates, busy
        self.threads = use_threads("auto")
        self.children = Children()
        # Of a machine and its software, so that numbers of two are never put into one table.
        self.machine = {**describe(1, self.threads), "versions": {**versions(), "torchvision": _version("torchvision")}}
        self.commit = commit()

    def run(self, rows: list[Row], singles: list[str]) -> int:
        """Measure what has no record yet; the signal that ended it early, or 0.

        Raises:
            TrainingError: a side failed; the records before it stay.
        """
        with self.children.ended_by_signals():
            try:
                for number in range(self.pairs):
                    for row in rows:
                        if number < self._pairs(row):
                            self._round(row, number)
                    if STARTING in singles:
                        self._single(STARTING, str(number), lambda: starting_times(self.children.run, self.threads))
                if PLANS in singles:
                    for recipe in planned_recipes():
                        self._single(PLANS, recipe, lambda recipe=recipe: compare_plan(recipe, self.updates))
                if DATA_PATH in singles:
                    for size in data_path.SIZES:
                        self._single(DATA_PATH, str(size), lambda size=size: data_path.figures(size))
            except Stopped:
                pass
        return self.children.signal

    def check(self, rows: list[Row], singles: Sequence[str] = ()) -> None:
        """Refuse a folder with records of another machine, other software or other settings.

        Raises:
            ConfigError: names the record and what differs.
        """
        keys = {row.name: {**self.machine, **self._settings(row)} for row in rows}
        keys.update({name: self._single_key for name in singles})
        for name, key in keys.items():
            for path in sorted((self.folder / "records" / name).glob("*.json")):
                other = _differing(key, json.loads(path.read_text("utf-8"))["key"])
                if other:
                    raise ConfigError(
                        f"{path} was measured with {other}.", "Give another folder with --out, or remove that one."
                    )

    def _settings(self, row: Row) -> dict[str, Any]:
        updates = self.updates or row.updates
        warm_up = 0 if row.epochs else min(row.warm_up, updates)
        return {
            "recipe": row.recipe, "settings": list(row.settings), "peer": row.peer, "batch": row.batch,
            "updates": updates, "warm_up": warm_up, "epochs": row.epochs, **row.peer_settings,
        }  # fmt: skip

    @property
    def _single_key(self) -> dict[str, Any]:
        return {**self.machine, "updates": self.updates}

    def _round(self, row: Row, number: int) -> None:
        paths = {side: self.folder / "records" / row.name / f"{number}-{side}.json" for side in row.sides}
        commits = [json.loads(path.read_text("utf-8"))["commit"] for path in paths.values() if path.exists()]
        # A whole row of an earlier commit stays as it is; half a row, or half a pair, is measured anew.
        if commits == [self.commit] * len(paths) or (len(commits) == len(paths) and self._complete(row)):
            return
        for path in paths.values():
            path.unlink(missing_ok=True)
        # In turn from the one end and the other: what drifts (heat, other users) then falls on both.
        for side in row.sides if number % 2 == 0 else row.sides[::-1]:
            self._side(row, side, number, paths[side])

    def _pairs(self, row: Row) -> int:
        return min(self.pairs, row.most_pairs or self.pairs)

    def _complete(self, row: Row) -> bool:
        names = {f"{number}-{side}.json" for number in range(self._pairs(row)) for side in row.sides}
        found = [path for path in (self.folder / "records" / row.name).glob("*.json") if path.name in names]
        return len(found) == len(names) and len({json.loads(path.read_text("utf-8"))["commit"] for path in found}) == 1

    def _side(self, row: Row, side: str, number: int, path: Path) -> None:
        settings = self._settings(row)
        slices = prepare(row, settings["updates"], self.folder / "slices" / f"{row.name}-{settings['updates']}")
        request = {
            **settings, **slices, "side": side, "seed": number, "threads": self.threads,
            "useful": row.useful, "best_precision": choose_precision("auto"),
        }  # fmt: skip
        others = {"cpu_used_by_others": others_share(), "busy_load": self.busy}
        with tempfile.TemporaryDirectory(prefix="finetune-speed-") as temporary:
            asked = Path(temporary) / "request.json"
            write_json(asked, request)
            peers = str(peers_program())
            command = [sys.executable, "-m", "finetune.bench.speed.ours"] if side == OURS else [sys.executable, peers]
            found = _answer(self.children, [*command, str(asked)], self.threads, f"{row.name}, {side}, pair {number}")
        say(f"{row.name}, pair {number + 1} of {self.pairs}, {side}: {found['examples'] / found['seconds']:.1f} rows/s")
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"row": row.name, "side": side, "pair": number, "found": found, **others}
        write_json(path, {**record, "commit": self.commit, "key": {**self.machine, **settings}})

    def _single(self, what: str, name: str, measure: Any) -> None:
        path = self.folder / "records" / what / f"{name}.json"
        if path.exists() and json.loads(path.read_text("utf-8"))["commit"] == self.commit:
            return
        others = {"cpu_used_by_others": others_share(), "busy_load": self.busy}
        try:
            found = measure()
        except TrainingError:
            if not self.children.signal:  # else Ctrl-C reached the command that was measured, too
                raise
        if self.children.signal:
            raise Stopped
        say(f"{what}, {name}: {', '.join(f'{key} {value}' for key, value in found.items())}")
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "found": found, **others, "commit": self.commit, "key": self._single_key}
        write_json(path, record)


def _answer(children: Children, command: list[str], threads: int, what: str) -> dict[str, Any]:
    """What a side prints on its last line.

    Raises:
        TrainingError: it failed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        status, error = children.run(command, threads, out)
        out.seek(0)
        lines = out.read().strip().splitlines()
    if status or not lines:
        raise TrainingError(
            f"{what} ended with status {status}:\n{error.strip()[-1500:]}",
            "Mend it and start the same command again: whole pairs that are measured stay.",
        )
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def peers_program() -> Path:
    """The peers' program in the checkout.

    Raises:
        ConfigError: this is an installed wheel, which has none.
    """
    path = recipes_folder().parent / "tests" / "peers" / "__main__.py"
    if not path.is_file():
        raise ConfigError(
            "The peers that `finetune bench speed` compares with are not in an installed package.",
            "Run it in a checkout of the repository, where they are in tests/peers.",
        )
    return path


def refuse_busy(allowed: bool) -> float:
    """The load average of the last minute.

    Raises:
        ConfigError: other work is going on, and `--busy` does not allow it.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD and not allowed:
        raise ConfigError(
            f"The machine is busy (load average {load:.2f}): its speeds would be those of what it does besides.",
            "Wait for a minute without other work, or add --busy, which the documents then say.",
        )
    return load


def others_share() -> float:
    """Share of all cores that other processes use just now."""
    return float(psutil.cpu_percent(interval=0.5)) / 100


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """What is not the same, in words."""
    names = [name for name in now if now[name] != then.get(name)]
    return ", ".join(f"{name} {then.get(name)} (now {now[name]})" for name in names)


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
