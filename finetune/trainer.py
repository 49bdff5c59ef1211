"""The training loop: fit, update, evaluate. Everything that happens to a model while it trains is in sight here.

Losses are sums, divided once by the count over all micro-shards and processes, so that neither the micro-batch nor
the number of processes changes the result. Accelerate's own accumulation stays at 1; the loop owns it.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.checkpoint import Checkpoints, Progress
from finetune.data.batching import BatchPlan
from finetune.data.updates import MicroBatch, Update, load_updates
from finetune.errors import TrainingError
from finetune.evaluation.predict import predict_rows, to_device
from finetune.files import write_json
from finetune.kernels import Kernels
from finetune.launch import say
from finetune.memory import shortage
from finetune.optim import build_optimizer, lr_factor, set_lr, warmup_updates
from finetune.progress import progress_bar
from finetune.randomness import seed_torch
from finetune.state import State, capture, not_finite, restore

if TYPE_CHECKING:
    from accelerate import Accelerator
    from tqdm import tqdm

    from finetune.adapters import Adapter
    from finetune.config import TrainSettings
    from finetune.gradients import Gradients
    from finetune.history import History
    from finetune.task import Task


# Mean loss, gradient norm before clipping, and the signal to stop or 0.
_Done = tuple[float, float, int]


@dataclass
class Trainer:
    """One model on its way through a plan.

    Attributes:
        model: the adapted model; `fit` leaves the best weights in it.
        identity: what a checkpoint must agree with to be resumed.
        checkpoints, history: where `fit` writes; given once the run has a folder.
        kernels: what its updates compute with.
        signal: the signal that asked this process to stop, 0 for none.
        stopped_by: the signal that all processes agreed to stop for, after an update.
    """

    task: Task
    adapter: Adapter
    model: torch.nn.Module
    settings: TrainSettings
    plan: BatchPlan
    accelerator: Accelerator
    gradients: Gradients
    identity: Mapping[str, Any]
    checkpoints: Checkpoints = field(init=False)
    history: History = field(init=False)
    kernels: Kernels = field(init=False)
    signal: int = 0
    stopped_by: int = 0

    def fit(self, resume: bool = False) -> tuple[Progress, Progress]:
        """Train to the end of the plan, an early stop or a signal: (where it started, where it ended).

        Raises:
            TrainingError: loss or gradients are not finite, and nothing of that update was applied; or weights are not.
            CheckpointError: a checkpoint can't be written, or none is whole.
        """
        accelerator, settings, total, progress = self.accelerator, self.settings, self.plan.total_updates, Progress()
        warmup = warmup_updates(settings, total)
        model = self.gradients.prepare(self.model)
        optimizer = accelerator.prepare_optimizer(self._optimizer())
        if resume and (found := self.checkpoints.newest()) is not None:
            state, progress, _ = found
            self._restore(state, model, optimizer.optimizer)
        before, self.kernels = replace(progress), Kernels(accelerator.device, settings)
        self.history.cut_after(progress.update)
        updates = load_updates(
            self.plan,
            self.task.rows["train"],
            self.task.collate,
            first_update=total if progress.stopped_early else progress.update,
            micro_batch_size=settings.micro_batch_size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            fixed=settings.deterministic == "elastic",
            workers=settings.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        with progress_bar(accelerator, "train", total, "update", done=progress.update) as bar:
            for update in updates:
                if self.adapter.before_update(self.model, self.task, progress.update):
                    model = self.gradients.prepare_again(model)
                set_lr(optimizer, lr_factor(progress.update, total, warmup, settings.lr_schedule, settings.lr_end))
                if (done := self._update(model, optimizer, progress.update, update)) is None:
                    updates.halve()  # no memory for it: the same rows again, fewer at once
                    continue
                loss, grad_norm, self.stopped_by = done
                progress.update += 1
                progress.rows += update.rows
                progress.tokens += update.tokens
                line = {"loss": loss, "lr": optimizer.param_groups[0]["lr"], "grad_norm": grad_norm}
                self.history.add({"update": progress.update, **line, "rows": progress.rows})
                accelerator.log({f"train/{name}": value for name, value in line.items()}, step=progress.update)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                evaluated = self.evaluation_due(progress.update)
                due = evaluated or self.stopped_by or progress.update % (settings.save_every_updates or total) == 0
                if due:
                    self._check_weights(progress.update, loss, grad_norm)
                if evaluated:
                    self._judge(model, progress, bar)
                if due:
                    self._save(model, optimizer, progress)
                if self.stopped_by or progress.stopped_early:
                    break
        if not self.stopped_by and progress.best_update != progress.update:
            self._restore(self.checkpoints.read(progress.best_update)[0], model)
        self.model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.task.fit_head(self.model, accelerator)
        accelerator.free_memory()
        return before, progress

    def _update(self, model: torch.nn.Module, optimizer: Any, number: int, update: Update) -> _Done | None:
        """Optimizer update `number` (0-based); None when a process had no memory for it: nothing of it was applied."""
        accelerator, micro_batches = self.accelerator, update.micro_batches
        self.adapter.train_mode(model)
        own = [sum((float(self.task.count(micro.batch)) for micro in micro_batches if not micro.is_empty), 0.0)]
        own += [float(self.signal == asked) for asked in (signal.SIGINT, signal.SIGTERM)]
        count, interrupts, terminations = accelerator.reduce(self._tensor(own), reduction="sum")

        def shard_loss_sum(micro: MicroBatch) -> torch.Tensor:
            seed_torch(self.settings.seed, "dropout", number, micro.number)
            return self.task.loss_sum(model, to_device(micro.batch, accelerator.device)) * (not micro.is_empty)

        with self.kernels.used(model):
            sums = self.gradients.accumulate(
                model, micro_batches, shard_loss_sum, count, lambda: self.adapter.penalty(model)
            )
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad_norm or math.inf)
        seen = torch.stack([*sums, torch.as_tensor(norm).to(sums.dtype), interrupts, terminations])
        mean_loss, short, grad_norm, interrupted, terminated = seen.tolist()  # host sync, the only one of an update
        if short:
            self.gradients.undo()
            optimizer.zero_grad()
            say(accelerator, shortage(update.micro_rows, accelerator.scaler is not None))
            return None
        # With fp16 an overflow is no accident: the scaler skips that step and lowers its scale.
        if not math.isfinite(mean_loss) or not (math.isfinite(grad_norm) or accelerator.scaler):
            raise TrainingError(
                f"Update {number + 1} has loss {mean_loss} and gradient norm {grad_norm}; nothing of it was applied. "
                f"Its training rows are in {self._save_rows(number, mean_loss, grad_norm)}.",
                "Look at them; or lower train.lr or set train.precision=fp32, and start a new run.",
            )
        optimizer.step()
        self.adapter.after_step(self.model, number + 1)
        optimizer.zero_grad()
        return mean_loss, grad_norm, signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0

    def _judge(self, model: torch.nn.Module, progress: Progress, bar: tqdm[Any]) -> None:
        """Evaluate on the validation rows; every process comes to the same verdict from the same gathered outputs."""
        task, judge = self.task, self.task.judge
        task.fit_head(self.model, self.accelerator)
        outputs = predict_rows(model, task.rows["valid"], task.collate, task.outputs, self.accelerator, "valid")
        values = judge.quick("valid", outputs)
        self.history.add({"update": progress.update, "valid": values})
        self.accelerator.log({f"valid/{name}": value for name, value in values.items()}, step=progress.update)
        # AdaLoRA's weights before its budget is reached are no candidates, however good, and no reason to stop.
        if self.adapter.may_be_best(self.model, progress.update):
            if progress.best_value is None or values[judge.best_metric] > progress.best_value:
                progress.best_value, progress.best_update = values[judge.best_metric], progress.update
                progress.evals_without_gain = 0
            else:
                progress.evals_without_gain += 1
        progress.stopped_early = progress.evals_without_gain == self.settings.early_stop_evals
        if self.accelerator.is_main_process:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            bar.write(f"update {progress.update}/{self.plan.total_updates}: valid {shown}")

    def _check_weights(self, update: int, loss: float, grad_norm: float) -> None:
        """No checkpoint is made of weights that are not finite, also where no loss depends on them.

        Raises:
            TrainingError: names one of them.
        """
        if (name := not_finite(self.model)) is not None:
            raise TrainingError(
                f"{name} is not finite after update {update}; no checkpoint is made of it. "
                f"That update's training rows are in {self._save_rows(update - 1, loss, grad_norm)}.",
                "Go on from the last checkpoint with --resume, or start a new run with a lower train.lr.",
            )

    def _save_rows(self, number: int, loss: float, grad_norm: float) -> Path:
        """nonfinite.json of an update that was not applied or kept: its rows over all processes, as they are named."""
        path = self.checkpoints.folder.parent / "nonfinite.json"
        if self.accelerator.is_main_process:
            rows, ids = [key.index for key in next(self.plan.updates(number))], self.task.data.splits["train"]["id"]
            # Blocks of packed documents have no names of their own.
            named = [ids[row] for row in rows] if len(ids) == len(self.task.rows["train"]) else None
            content = {"update": number + 1, "loss": str(loss), "grad_norm": str(grad_norm), "rows": rows, "ids": named}
            write_json(path, content)
        return path

    def evaluation_due(self, update: int) -> bool:
        """Whether the validation rows are judged after `update`, counted from 1."""
        every = self.settings.eval_every_updates or self.plan.updates_per_epoch
        return update % every == 0 or update == self.plan.total_updates

    def _save(self, model: torch.nn.Module, optimizer: Any, progress: Progress) -> None:
        state = capture(model, optimizer.optimizer, self.adapter.state(self.model))
        if self.accelerator.is_main_process:
            self.checkpoints.save(state, progress, self.identity)
        self.accelerator.wait_for_everyone()  # nobody goes on before the checkpoint is durable

    def _restore(self, state: State, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        restore(state, model, optimizer)
        self.adapter.load_state(self.model, *state.adapter)

    def _optimizer(self) -> torch.optim.Optimizer:
        scales, undecayed = self.adapter.lr_scales(self.model, self.task), self.adapter.undecayed(self.model)
        return build_optimizer(self.model, self.settings, scales, undecayed)

    def _tensor(self, values: list[float]) -> torch.Tensor:
        wide = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        return torch.tensor(values, dtype=wide, device=self.accelerator.device)
