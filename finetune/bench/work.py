"""`finetune bench run`: workers share a table's runs by locks; a finished run is a record, never repeated."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock

from finetune.bench.children import Children, Stopped, core_sets, pin
from finetune.bench.jobs import (
    Job,
    answers_of,
    changed_data,
    data_hash,
    data_source,
    pending,
    read_records,
    stored_of,
)
from finetune.bench.table import Table, recipe_of
from finetune.data.cache import cache_folder, say
from finetune.errors import ConfigError, DataError, TrainingError
from finetune.evaluation.stored import LOWER_IS_BETTER, read_predictions
from finetune.files import write_json
from finetune.options import RunOptions, resolve
from finetune.run_folder import read_record


def check_table(table: Table) -> None:
    """Refuse what no run could take - a recipe, an adapter, a setting - before the first is started.

    Raises:
        ConfigError: with the row and column.
    """
    for row in table.content.rows:
        for column in table.content.columns:
            if table.has(row, column):
                searched = row.search.values[0] if row.search else None
                try:
                    resolve(run_options(table, Job(row, column, table.content.seeds[0], searched)))
                except ConfigError as error:
                    where = f"{table.path}, {row.name} on {column.name}: "
                    raise ConfigError(f"{where}{error.problem}", error.fix) from None


def run_options(table: Table, job: Job) -> RunOptions:
    """A run's options, as the command line would give them."""
    recipe = recipe_of(table.path, job.column.recipe or job.row.recipe)
    settings = [*job.row.set, *job.column.set, f"train.threads={table.content.threads}"]
    if job.row.search is not None and job.searched is not None:
        settings.append(f"{job.row.search.key}={job.searched}")
    return RunOptions(recipe, settings, data_source(table, job.column), job.row.adapter, job.seed)


def run_table(table: Table, folder: Path, workers: int) -> tuple[int, int]:
    """Run what has no record yet: (runs done here, the signal that ended it early or 0).

    Each worker keeps to cores of its own, as far as there are. SIGINT and SIGTERM end the runs on their way, of which
    nothing stays; the same call goes on with them. After a run that failed those on their way are finished, and no
    other is begun.

    Raises:
        ConfigError: a row that can't be run.
        DataError: a column's data have changed since its records were made.
        TrainingError: a run failed; the others' records stay.
    """
    check_table(table)
    if changed := changed_data(table, read_records(table, folder)):
        raise DataError(f"{changed[0]}.")
    cores = core_sets(workers, table.content.threads)
    (folder / table.name).mkdir(parents=True, exist_ok=True)
    children = Children()
    with children.ended_by_signals(), ThreadPoolExecutor(workers) as pool:
        counts = [pool.submit(_work, table, folder, children, own) for own in cores]
        done = sum(count.result() for count in counts)
    return done, children.signal


def _work(table: Table, folder: Path, children: Children, cores: set[int]) -> int:
    """Take runs that nobody else has, until none is left; each is a process of its own."""
    done = 0
    pin(cores)
    try:
        while not children.stop.is_set() and (todo := pending(table, read_records(table, folder))):
            if _first_free(table, folder, todo, children):
                done += 1
            else:
                children.stop.wait(1.0)
    except Stopped:
        pass
    finally:
        children.stop.set()  # nothing is left to be done, or something is wrong: the other workers end too
    return done


def _first_free(table: Table, folder: Path, todo: list[Job], children: Children) -> bool:
    """Make the first run that no other worker, here or on another machine, has; whether there was one.

    What is to be done may have changed after it: a search may have ended.
    """
    for job in todo:
        path = folder / table.name / f"{job.key(table)}.json"
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        lock = filelock.FileLock(cache_folder("locks") / f"bench-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        try:
            if not path.exists():
                started = time.monotonic()
                say(f"{job.row.name} on {job.column.name}, seed {job.seed}: started")
                record = run_job(table, job, children)
                record["wall_s"] = round(time.monotonic() - started, 2)
                write_json(path, record)
                say(f"{path.name}: {record['score']:.4f} {record['metric']} in {record['wall_s']:.0f} s")
                return True
        finally:
            lock.release()
    return False


def run_job(table: Table, job: Job, children: Children) -> dict[str, Any]:
    """Make one run and return its record; nothing else of it is kept."""
    make = _fine_tuned if job.row.method == "fine-tune" else _frozen
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as temporary:
        part = make(table, job, Path(temporary), children)
    # As the table names them: records are published, and where files lie on this machine is no part of a result.
    part["config"]["data"]["source"] = job.column.data
    if part["recipe"]["origin"] != "packaged":
        part["recipe"]["origin"] = job.column.recipe or job.row.recipe
    record = {
        "key": job.key(table),
        "table": table.name,
        "row": job.row.name,
        "column": job.column.name,
        "seed": job.seed,
        "metric": job.column.metric,
        "data_hash": data_hash(table, job.column),
        "searched": None if job.row.search is None else {job.row.search.key: job.searched},
        "test_evaluations": 1,
        **part,
    }
    # From the answers as they are kept, so that the same can be computed from the record.
    return {**record, "score": stored_of(record).value(job.column.metric)}


def _fine_tuned(table: Table, job: Job, folder: Path, children: Children) -> dict[str, Any]:
    options = run_options(table, job)
    flags = ["--recipe", str(options.recipe), "--data", str(options.data), "--seed", str(options.seed)]
    flags += ["--adapter", options.adapter] if options.adapter else []
    settings = [*options.overrides, "train.keep_outputs=false"]  # seconds are of a run that computes everything
    if hasattr(resolve(options).recipe.objective, "baselines"):
        settings.append("objective.baselines=false")  # they are rows of their own
    for setting in settings:
        flags += ["--set", setting]
    run = folder / "run"
    _process([sys.executable, "-m", "finetune.run", *flags, "--output", str(run)], table, job, children)
    record = read_record(run)
    metric = job.column.metric
    valid = record["metrics"]["valid"].get(metric, {}).get("value")
    adapter = [path.stat().st_size for path in (run / "adapter").rglob("*.safetensors")]
    record["data"].pop("notes", None)  # they name files of this machine
    return {
        **{key: record[key] for key in ("recipe", "config", "data", "model", "versions", "commit", "hardware")},
        **{key: record[key] for key in ("precision", "updates", "best_update", "peak_rss_mb")},
        "metrics": record["metrics"],
        "valid_score": valid if valid is None or metric not in LOWER_IS_BETTER else -valid,
        "trainable": record["model"]["trainable"],
        "train_s": record["timing"]["train_s"],
        "adapter_bytes": sum(adapter) or None,
        "test": answers_of(read_predictions(run, record)),
    }


def _frozen(table: Table, job: Job, folder: Path, children: Children) -> dict[str, Any]:
    options = run_options(table, job)
    request, answer = folder / "request.json", folder / "answer.json"
    content = {"options": vars(options), "method": job.row.method, "shots": job.row.shots, "seed": job.seed}
    request.write_text(json.dumps(content), "utf-8")
    _process([sys.executable, "-m", "finetune.bench.frozen", str(request), str(answer)], table, job, children)
    found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    return found


def _process(command: list[str], table: Table, job: Job, children: Children) -> None:
    status, error = children.run(command, table.content.threads)
    if status:
        raise TrainingError(
            f"{job.row.name} on {job.column.name}, seed {job.seed} ended with status {status}:\n"
            f"{error.strip()[-1500:]}",
            "Mend it and start the same command again: finished runs are kept.",
        )
