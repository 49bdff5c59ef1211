"""The runs of a table: what each is, where its record stands, and which are still to be done. Records are the truth."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.bench.table import Column, Row, Table, tables_folder
from finetune.data.file_kinds import SUFFIXES, missing_file
from finetune.errors import ConfigError, DataError
from finetune.evaluation.stored import Stored
from finetune.files import sha256_file

MIRROR = "data://"


@dataclass(frozen=True)
class Job:
    """One run: a cell of the table with a seed, and the value of the row's search where it has one."""

    row: Row
    column: Column
    seed: int
    searched: str | int | float | None = None

    def key(self, table: Table) -> str:
        """Name of its record: what it is, and a hash over what decides it: a changed row or recipe runs anew."""
        what = {
            "row": self.row.model_dump(exclude={"search", "columns"}),
            "column": self.column.model_dump(exclude={"metric"}),
            "seed": self.seed,
            "searched": None if self.searched is None or self.row.search is None else [
                self.row.search.key, self.searched
            ],
            "threads": table.content.threads,
            "code": table.codes[self.column.recipe or self.row.recipe],
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        words = "-".join(filter(None, (_word(self.row.name), _word(self.column.name), f"s{self.seed}")))
        return f"{words}-{digest[:10]}"


def data_source(table: Table, column: Column) -> str:
    """A column's data as `--data` takes it.

    Raises:
        ConfigError: data://PATH without FINETUNE_DATA, or a file that is not there.
    """
    if column.data.startswith(MIRROR):
        root = os.environ.get("FINETUNE_DATA")
        if not root:
            raise ConfigError(
                f"{table.path}: column {column.name} reads {column.data}, but FINETUNE_DATA is not set.",
                "Set it to the folder that holds the data.",
            )
        return str(Path(root).expanduser() / column.data.removeprefix(MIRROR))
    beside = table.path.parent / column.data
    known = beside.suffix.lower() in {*SUFFIXES, ".md"}
    if known and not beside.exists() and not Path(column.data).exists():
        error = missing_file(beside)
        raise ConfigError(f"{table.path}: column {column.name}: {error.problem}", error.fix)
    return str(beside) if ("." in column.data or "/" in column.data) and beside.exists() else column.data


def data_hash(table: Table, column: Column) -> str | None:
    """SHA-256 of a column's own file or folder; None for cards, whose files state theirs, and for the hub.

    In a folder, files of rows by their content, all others (images) by name and size.
    """
    path = Path(data_source(table, column))
    if path.suffix == ".md" or not path.exists():
        return None
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [
        f"{file.relative_to(path)} {sha256_file(file) if file.suffix.lower() in SUFFIXES else file.stat().st_size}\n"
        for file in files
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def changed_data(table: Table, records: Mapping[str, dict[str, Any]]) -> list[str]:
    """A message for each column whose data on this machine are not those that its records were made from."""
    messages = []
    for column in table.content.columns:
        made = {key: record["data_hash"] for key, record in records.items()
                if record["column"] == column.name and record.get("data_hash")}  # fmt: skip
        if not made or (column.data.startswith(MIRROR) and not os.environ.get("FINETUNE_DATA")):
            continue
        try:
            now = data_hash(table, column)
        except ConfigError:  # not on this machine: nothing to compare with
            continue
        stale = [key for key, there in made.items() if now is not None and there != now]
        if stale:
            messages.append(
                f"{column.data} has changed since {len(stale)} records of {column.name} were made, {stale[0]}.json "
                "among them; put it back, or delete them to run them anew"
            )
    return messages


def results_folder(table: Table, results: str | None) -> Path:
    """Where a table's results stand: --results DIR, else beside the table's file."""
    if results is not None:
        return Path(results)
    if table.path.parent == tables_folder() and "_recipes" in table.path.parts:
        raise ConfigError("The tables of an installed package have no place for results.", "Name one: --results DIR")
    return table.path.parent / "results"


def read_records(table: Table, folder: Path) -> dict[str, dict[str, Any]]:
    """The finished runs' records by key.

    Raises:
        DataError: a file that is no record.
    """
    found = {}
    for path in sorted((folder / table.name).glob("*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no record: {error}.", "Put it back from git, or delete it.") from None
        if not isinstance(record, dict) or record.get("key") != path.stem:
            raise DataError(f"{path} is no record of that name.", "Put it back from git, or delete it.")
        found[path.stem] = record
    return found


def jobs_of_cell(table: Table, row: Row, column: Column, records: Mapping[str, Any]) -> tuple[list[Job], list[Job]]:
    """(runs whose scores make the cell, runs of the search), as far as the records tell; a search goes first."""
    seeds = table.seeds_of(row, column)
    if row.search is None:
        return [Job(row, column, seed) for seed in seeds], []
    tries = [Job(row, column, seeds[0], value) for value in row.search.values]
    scores = [records.get(job.key(table), {}).get("valid_score") for job in tries]
    if any(score is None for score in scores):
        return [], tries
    best = tries[int(np.argmax(scores))].searched
    return [Job(row, column, seed, best) for seed in seeds], tries


def pending(table: Table, records: Mapping[str, Any]) -> list[Job]:
    """The runs that can be started now, in the order of the table, seed by seed."""
    jobs = []
    for row in table.content.rows:
        for column in table.content.columns:
            if table.has(row, column):
                scored, tries = jobs_of_cell(table, row, column, records)
                jobs += [*tries, *scored]
    todo = {job.key(table): job for job in jobs if job.key(table) not in records}
    return sorted(todo.values(), key=lambda job: table.content.seeds.index(job.seed))


def packed(array: np.ndarray) -> dict[str, str]:
    """An array as text that git and JSON bear: class indices as 16-bit numbers, else 32-bit floats, compressed."""
    kind = "<i2" if np.issubdtype(array.dtype, np.integer) else "<f4"
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(array.astype(kind)).tobytes(), 9)).decode()
    return {"dtype": kind, "zlib": content}


def unpacked(value: Mapping[str, str]) -> np.ndarray:
    """What `packed` made, as 64-bit numbers."""
    array = np.frombuffer(zlib.decompress(base64.b64decode(value["zlib"])), value["dtype"])
    return array.astype(np.int64 if value["dtype"] == "<i2" else np.float64)


def stored_of(record: Mapping[str, Any]) -> Stored:
    """A record's answers on the test rows; ids are positions, and their hash stands in the record.

    Raises:
        DataError: they are damaged.
    """
    test = record["test"]
    try:
        labels, predictions = unpacked(test["labels"]), unpacked(test["predictions"])
    except (ValueError, KeyError, zlib.error) as error:
        raise DataError(f"{record['key']}.json holds damaged answers: {error}.", "Put it back from git.") from None
    if test["kind"] == "documents":
        labels = labels.reshape(-1, 2)
    if len(labels) != test["rows"] or len(predictions) != test["rows"]:
        raise DataError(f"{record['key']}.json holds {len(predictions)} answers of {test['rows']} rows.")
    return Stored(test["kind"], tuple(map(str, range(test["rows"]))), labels, predictions, tuple(test["names"]))


def answers_of(stored: Stored) -> dict[str, Any]:
    """What a record keeps of the answers: enough for any metric and any paired test."""
    return {
        "kind": stored.kind,
        "rows": len(stored.ids),
        "ids_sha256": hashlib.sha256("\n".join(stored.ids).encode()).hexdigest(),
        "names": list(stored.names),
        "labels": packed(stored.labels.ravel()),
        "predictions": packed(stored.predictions),
    }


def _word(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name.lower()).strip("_")[:24]
