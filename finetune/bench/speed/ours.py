"""Our side of a row, in a process of its own: `python -m finetune.bench.speed.ours REQUEST`; JSON on its last line."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from finetune.task import Task
    from finetune.trainer import Trainer


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train as `finetune run` does, without baselines and export, and say how long it took.

    Args:
        request: as `finetune.bench.speed.session` writes it.

    Returns:
        seconds of the timed updates with their examples and (real) tokens, peak memory up to the last of them, and
        test accuracy after a whole training.
    """
    from finetune.checkpoint import Checkpoints
    from finetune.experiment import build_trainer, computed_once, open_run
    from finetune.options import RunOptions

    settings = [*request["settings"], f"train.batch_size={request['batch']}", f"model.name={request['model']}"]
    settings += ["objective.baselines=false", "train.eval_every_updates=1000000"]
    warm_up, updates, whole = request["warm_up"], request["updates"], bool(request["epochs"])
    if whole:
        settings.append(f"train.epochs={request['epochs']}")
        if request["recipe"] == "few_shot_cls":
            # The slice is those rows; and as many pairs as the peer makes of them.
            settings += ["data.shots=none", f"objective.rounds={updates * request['batch'] // (2 * request['rows'])}"]
    else:
        # One more than is done: the last of a plan is evaluated, which is not compared here.
        settings += ["train.epochs=1000", f"train.max_updates={warm_up + updates + 1}"]
    if request["recipe"] == "few_shot_cls":
        # A run imports it when it fits its first head. The peer's clock starts after its imports, so ours does too.
        import sklearn.linear_model  # noqa: F401
    options = RunOptions(request["recipe"], settings, request["data"], seed=request["seed"])
    loaded, accelerator, precision, threads = open_run(options)
    task = loaded.build()
    trainer = build_trainer(loaded, task, accelerator)
    with tempfile.TemporaryDirectory(prefix="finetune-speed-") as folder:
        trainer.checkpoints = Checkpoints(Path(folder) / "checkpoints", 1, lambda text: print(text, file=sys.stderr))
        clock = Clock(Path(folder) / "history.jsonl", trainer, None if whole else warm_up + updates)
        trainer.history = clock.history
        calls = None
        if request["useful"]:
            from finetune.bench.speed.useful import Products

            calls = Products(trainer.model)
            clock.at[warm_up] = calls.stop
        trainer.task = replace(task, fit_head=clock.head(task))
        started = time.perf_counter()
        with computed_once(trainer):
            _, progress = trainer.fit()
    ends = clock.ends
    seconds = max(ends[-1], clock.head_fitted) - started if whole else ends[-1] - ends[warm_up - 1]
    timed = slice(None) if whole else slice(warm_up, warm_up + updates)
    found: dict[str, Any] = {
        "seconds": seconds,
        "updates": len(ends[timed]),
        **worked(trainer, timed.start or 0, len(ends)),
        "peak_rss_mb": clock.peak_rss_mb,
        "precision": precision,
        "threads": threads,
        "mean_loss": sum(clock.losses[timed]) / len(clock.losses[timed]),
    }
    if whole:
        found["accuracy"] = _accuracy(task, trainer.model, accelerator)
        found["updates"] = progress.update
    if calls is not None:
        lengths = worked_lengths(trainer, timed.start, len(ends))
        faster = trainer.kernels.in_use(trainer.model, precision != "fp32", causal=False)
        one_token_layers = int("train.skip_unread" in faster)
        found["useful"] = calls.useful(found["tokens"], lengths, seconds, one_token_layers)
    return found


class Clock:
    """Notes when each update is done; the trainer's own history line is what it goes by.

    Attributes:
        ends: seconds, an entry an update.
        head_fitted: when a head that no gradient trains was fitted for the first time, or 0.
        at: what to do after an update, by its number.
    """

    def __init__(self, path: Path, trainer: Trainer, last: int | None) -> None:
        from finetune.hardware import peak_rss_mb
        from finetune.history import History

        self.ends: list[float] = []
        self.losses: list[float] = []
        self.at: dict[int, Any] = {}
        self.head_fitted, self.peak_rss_mb = 0.0, 0.0
        clock = self

        class Timed(History):
            def add(self, line: dict[str, Any]) -> None:
                super().add(line)
                if "loss" not in line:
                    return
                clock.losses.append(line["loss"])
                if (done := line["update"]) in clock.at:
                    clock.at[done]()
                clock.peak_rss_mb = peak_rss_mb()
                if last is not None and done == last - 1:
                    trainer.signal = signal.SIGTERM  # the next update is the last, as when a user asks to stop
                clock.ends.append(time.perf_counter())

        self.history = Timed(path)

    def head(self, task: Task) -> Any:
        """A Task's fit_head that is noted."""

        def fit(model: torch.nn.Module, accelerator: Accelerator) -> None:
            task.fit_head(model, accelerator)
            if not self.head_fitted and self.ends:
                self.head_fitted = time.perf_counter()

        return fit


def worked_lengths(trainer: Trainer, first: int, last: int) -> list[int]:
    """Tokens of each training row of some updates; none where rows have no length."""
    lengths = trainer.task.rows["train"].lengths
    if lengths is None:
        return []
    plan = trainer.plan.updates(first)
    return [int(lengths[key.index]) for _, keys in zip(range(first, last), plan, strict=False) for key in keys]


def worked(trainer: Trainer, first: int, last: int) -> dict[str, int]:
    """Examples and real tokens of some updates, padding not counted."""
    examples = sum(len(keys) for _, keys in zip(range(first, last), trainer.plan.updates(first), strict=False))
    return {"examples": examples, "tokens": sum(worked_lengths(trainer, first, last))}


def _accuracy(task: Task, model: torch.nn.Module, accelerator: Accelerator) -> float:
    from finetune.evaluation.predict import predict_rows

    outputs = predict_rows(model, task.rows["test"], task.collate, task.outputs, accelerator, "test")
    return task.judge.quick("test", outputs)["accuracy"]


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
