"""One run from its options to its record: resolve, load, compare with baselines, fit, export, judge, report."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetune.config import flattened
from finetune.errors import CheckpointError
from finetune.garbage import collect_as_usual
from finetune.options import RunOptions, command_line, resolve
from finetune.run_folder import RUNS, check_output, find_run, make_run_folder, read_record

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.checkpoint import Checkpoints
    from finetune.evaluation.kept import KeptOutputs
    from finetune.recipe import LoadedRecipe
    from finetune.record import RunRecord
    from finetune.task import Task
    from finetune.trainer import Trainer

# Settings that may differ when a run is resumed: they change speed, memory or what is kept, never the result.
FREE_SETTINGS = {
    "threads",
    "workers",
    "keep_checkpoints",
    "save_every_updates",
    "trackers",
    "micro_batch_size",
    "reuse_memory",
    "keep_outputs",
}


def run(options: RunOptions) -> int:
    """Fine-tune, judge and record; the exit status: 0, or 130 and 143 for a run that was interrupted.

    Raises:
        FinetuneError: what a user can mend; nothing is written when settings or data are refused.
    """
    check_output(options.output)
    if options.resume is not None and read_record(find_run(options.resume))["status"] == "completed":
        print(f"{options.resume} is completed already; nothing is left to resume.")
        return 0

    from finetune.evaluation.predict import predict_rows
    from finetune.launch import say
    from finetune.watch import watched

    seconds = _Seconds()
    loaded, accelerator, precision, threads = open_run(options)
    try:
        task = loaded.build()
        kept = _kept_outputs(loaded, task)
        trainer = build_trainer(loaded, task, accelerator)
        folder = _open_folder(loaded, options, trainer)
        record = _first_record(loaded, options, trainer, folder, precision, threads)
        collect_as_usual()
        seconds.stop("load_s")
        with (
            _recorded_failure(record),
            # Outside of the watch: the launcher's SIGTERM must not end a process that is about to name a lost one.
            _stopped_by_signals(trainer),
            watched(accelerator, folder, lambda problem: record.update(status="failed", problem=problem)),
        ):
            say(accelerator, f"{folder}: {_plan_line(trainer, record)}")
            for note in record.content["data"]["notes"]:
                say(accelerator, f"note: {note}")
            baselines = task.baselines(accelerator, kept or predict_rows) if task.baselines else []
            samples = task.samples(task.model) if task.samples and accelerator.is_main_process else []
            seconds.stop("baselines_s")
            with computed_once(trainer, kept):
                before, progress = trainer.fit(resume=options.resume is not None)
            seconds.stop("train_s")
            done_s = max(seconds.values["train_s"], 1e-9)
            speed = {"examples_per_s": round((progress.rows - before.rows) / done_s, 1)}
            if task.rows["train"].lengths is not None:  # else rows were counted in place of their tokens
                speed["tokens_per_s"] = round((progress.tokens - before.tokens) / done_s, 1)
            counts: dict[str, Any] = {"updates": progress.update, "best_update": progress.best_update}
            counts["read_from_cache"] = kept.read if kept else []
            if trainer.stopped_by:
                record.update(status="interrupted", **counts, timing={**seconds.values, **speed})
                say(accelerator, f"Interrupted after update {progress.update}. Go on with: --resume {folder}")
                return 128 + trainer.stopped_by

            from finetune.export import export, refuse_unequal
            from finetune.results import judge_export, write_report

            exported = export(task, trainer, folder)
            record.update(**exported)
            refuse_unequal(exported["export_check"])
            results = judge_export(task, trainer.adapter, accelerator, folder, baselines, samples)
            seconds.stop("eval_s")
            record.update(status="completed", **counts, **results, timing={**seconds.values, **speed})
            if accelerator.is_main_process:
                write_report(record.content, task.data, folder)
            accelerator.wait_for_everyone()
        return 0
    finally:
        # Trackers are closed and the process group is left; no DDP model is alive by now, which gloo insists on.
        accelerator.end_training()


def open_run(options: RunOptions) -> tuple[LoadedRecipe, Accelerator, str, int]:
    """Resolved recipe, Accelerator, precision and threads: all that comes before data and model."""
    from finetune.hardware import choose_precision, reuse_freed_memory, use_threads
    from finetune.launch import make_accelerator

    loaded = resolve(options)
    loaded.recipe.adapter.check_machine()
    settings = loaded.recipe.train
    reuse_freed_memory(settings.reuse_memory)
    # Sums inside an operator are cut by threads, so the same bits anywhere need the same threads everywhere.
    elastic = settings.deterministic == "elastic" and settings.threads == "auto"
    precision, threads = choose_precision(settings.precision), use_threads(1 if elastic else settings.threads)
    return loaded, make_accelerator(precision, settings.trackers), precision, threads


def _kept_outputs(loaded: LoadedRecipe, task: Task) -> KeptOutputs | None:
    """What reads and keeps outputs of the model as it came, before an adapter goes in; None where nothing would."""
    from finetune.adapters import Frozen, Layers
    from finetune.evaluation.kept import KeptOutputs

    recipe, adapter = loaded.recipe, loaded.recipe.adapter
    reused = isinstance(adapter, Frozen) and adapter.reuse_features
    reused |= isinstance(adapter, Layers) and bool(adapter.freeze_below) and adapter.reuse_features
    if not recipe.train.keep_outputs or not (task.baselines or reused):
        return None
    return KeptOutputs(recipe.train, task.model, recipe.adapter.model_dump(), loaded.sha256)


def build_trainer(loaded: LoadedRecipe, task: Task, accelerator: Accelerator) -> Trainer:
    """Plan, adapter and trainer of a task; nothing is written, and what can't be is refused."""
    from finetune.adapters.adapter import leave_fixed
    from finetune.data.batching import BatchPlan
    from finetune.gradients import Averaged, InOrder
    from finetune.hardware import keep_few_products
    from finetune.models import check_positions
    from finetune.randomness import seed_torch
    from finetune.trainer import Trainer

    settings, adapter, rows = loaded.recipe.train, loaded.recipe.adapter, task.rows["train"]
    keep_few_products(settings.reuse_memory and rows.lengths is not None)
    lengths = rows.lengths if settings.length_buckets else None
    plan = BatchPlan(len(rows), lengths, settings.batch_size, settings.epochs, settings.seed, settings.max_updates)
    check_positions(
        task.model,
        max((int(some.lengths.max()) for some in task.rows.values() if some.lengths is not None), default=0),
        "data.block_tokens" if "block_tokens" in type(loaded.recipe.data).model_fields else "data.max_tokens",
        adapter.added_tokens(),
    )
    adapter.check_training(settings, accelerator)
    adapter.check(task, plan.total_updates)
    seed_torch(settings.seed, "adapter")
    model = adapter.wrap(task.model, task, plan.total_updates)
    leave_fixed(model, task)
    if settings.activation_checkpointing:
        cast(Any, model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # The order of sums is the promise there, and it is that of the micro-shards.
    free = FREE_SETTINGS - {"micro_batch_size"} if settings.deterministic == "elastic" else FREE_SETTINGS
    identity = {
        "recipe": loaded.sha256,
        "data": task.data.sha256,
        "labels": list(task.data.labels),
        "updates": plan.total_updates,
        "settings": {
            key: value for key, value in flattened(loaded.resolved()).items() if key.removeprefix("train.") not in free
        },
    }
    gradients = InOrder(accelerator, model) if settings.deterministic == "elastic" else Averaged(accelerator)
    return Trainer(task, adapter, model, settings, plan, accelerator, gradients, identity)


@contextmanager
def computed_once(trainer: Trainer, kept: KeptOutputs | None = None) -> Iterator[None]:
    """A context in which training leaves out what it would compute again or for nothing, each by its own key."""
    from finetune.absent_tokens import without_absent_tokens
    from finetune.frozen_features import reused_features
    from finetune.frozen_layers import reused_layers

    with reused_features(trainer, kept), reused_layers(trainer, kept), without_absent_tokens(trainer):
        yield


def _open_folder(loaded: LoadedRecipe, options: RunOptions, trainer: Trainer) -> Path:
    """The run's folder, new or resumed, with its checkpoints, history and trackers given to the trainer."""
    from finetune.checkpoint import Checkpoints
    from finetune.disk_space import check_disk_space
    from finetune.history import History
    from finetune.launch import say, shared_folder

    accelerator, settings = trainer.accelerator, trainer.settings

    def checkpoints_in(folder: Path) -> Checkpoints:
        return Checkpoints(folder / "checkpoints", settings.keep_checkpoints, lambda text: say(accelerator, text))

    place = options.output or RUNS if options.resume is None else find_run(options.resume)
    check_disk_space(trainer, Path(place))
    if options.resume is None:
        folder = shared_folder(accelerator, lambda: make_run_folder(loaded.name, options.output))
    else:
        folder = find_run(options.resume)
        _refuse_changes(checkpoints_in(folder), dict(trainer.identity))
    trainer.checkpoints = checkpoints_in(folder)
    trainer.history = History(folder / "history.jsonl" if accelerator.is_main_process else None)
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.project_configuration.logging_dir = str(folder / "trackers")
    accelerator.init_trackers(loaded.name, config=flattened(loaded.resolved()))
    return folder


def _refuse_changes(checkpoints: Checkpoints, identity: dict[str, Any]) -> None:
    """Refuse to go on with other data, labels, recipe or settings than the checkpoint's; names what changed."""
    found = checkpoints.newest()
    if found is None:
        return
    before = found[2]
    changed = [name for name in ("recipe", "data", "labels", "updates") if before.get(name) != identity[name]]
    settings = {
        key: (before["settings"].get(key), value)
        for key, value in identity["settings"].items()
        if before["settings"].get(key) != value
    }
    if changed or settings:
        what = [
            {"recipe": "the recipe's source", "updates": "the planned updates"}.get(name, f"the {name}")
            for name in changed
        ]
        what += [f"{key} ({old} is now {new})" for key, (old, new) in settings.items()]
        raise CheckpointError(
            f"The run can't be resumed, because this changed since its checkpoint: {', '.join(what)}.",
            "Put it back, or start a new run.",
        )


def _first_record(
    loaded: LoadedRecipe, options: RunOptions, trainer: Trainer, folder: Path, precision: str, threads: int
) -> RunRecord:
    from finetune.hardware import describe
    from finetune.record import RunRecord, commit, versions

    task, model, accelerator = trainer.task, trainer.model, trainer.accelerator
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    data, files = task.data, task.files
    # --resume finds the file again from any folder.
    origin = loaded.origin if loaded.origin == "packaged" else str(Path(loaded.origin).absolute())
    content = {
        "status": "running",
        "task": task.kind,
        "recipe": {"name": loaded.name, "origin": origin, "hash": loaded.sha256},
        "config": loaded.resolved(),
        "data": {
            "card": data.name,
            "sha256": data.sha256,
            "rows": {name: len(rows) for name, rows in task.rows.items()},
            "labels": list(data.labels),
            "notes": [*data.notes, *task.notes],
        },
        "model": {
            "name": files.name,
            "revision": files.revision,
            "sha256": files.sha256,
            "parameters": sum(count for count, _ in parameters),
            "trainable": sum(count for count, trainable in parameters if trainable),
        },
        "versions": versions(),
        "commit": commit(),
        "hardware": describe(accelerator.num_processes, threads),
        "precision": precision,
        "command": read_record(folder)["command"] if options.resume else command_line(options),
        "seed": loaded.recipe.train.seed,
        "metrics": {},
        "baselines": {},
    }
    record = RunRecord(folder / "run.json" if accelerator.is_main_process else None, content)
    record.update(status="running")
    return record


def _plan_line(trainer: Trainer, record: RunRecord) -> str:
    content, settings = record.content, trainer.settings
    rows, model, hardware = content["data"]["rows"], content["model"], content["hardware"]
    return (
        f"{content['recipe']['name']} on {content['data']['card']} "
        f"({' / '.join(f'{count:,} {name}' for name, count in rows.items())}); "
        f"{model['trainable']:,} of {model['parameters']:,} parameters; {trainer.plan.total_updates:,} updates of "
        f"{settings.batch_size} rows; {content['precision']}, {hardware['processes']} process(es) x "
        f"{hardware['threads']} threads{', ' + hardware['gpus'][0] if hardware['gpus'] else ''}"
    )


class _Seconds:
    """Wall time of one stage after the other."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._from = time.monotonic()

    def stop(self, name: str) -> None:
        now = time.monotonic()
        self.values[name], self._from = round(now - self._from, 2), now


@contextmanager
def _recorded_failure(record: RunRecord) -> Iterator[None]:
    """Whatever ends the run, its record says so."""
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            record.update(status="failed")


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM let the update finish; a second one does no harm."""

    def ask(number: int, _: Any) -> None:
        trainer.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
