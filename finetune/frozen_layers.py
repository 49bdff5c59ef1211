"""What frozen lower layers give for every row, computed once: each epoch then trains the layers above them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from finetune.adapters.layers import Layers, layer_list
from finetune.data.batching import RowKey
from finetune.data.mapped import forget_pages
from finetune.errors import TrainingError
from finetune.evaluation.predict import planned_batches, to_device
from finetune.kernels import Kernels
from finetune.launch import say
from finetune.memory import Shortage
from finetune.progress import passing_bar

if TYPE_CHECKING:
    from finetune.evaluation.kept import KeptOutputs
    from finetune.task import Batch, Collate, Rows
    from finetune.trainer import Trainer

SPLITS = ("train", "valid")
# A few tell that hidden states are read where they are put in, as for features of a frozen encoder.
PROBE_ROWS = 4
# Of the largest logit, in fp32: the same numbers went through the same layers, in a batch of another shape.
TOLERANCE = 1e-5
# Of the free disk: checkpoints were promised theirs.
MOST_OF_DISK = 0.1
# What a batch and its rows call it; no model's input has this name.
BELOW = "hidden_states_below"


@contextmanager
def reused_layers(trainer: Trainer, kept_outputs: KeptOutputs | None = None, compute: bool = True) -> Iterator[None]:
    """A context in which `trainer` trains upper layers on hidden states that frozen ones gave once.

    Exact up to rounding: dropout of frozen layers is in evaluation mode, so that they give every epoch the same. They
    compute whole evaluation batches, in the precision of training, and the same ones for any number of processes. The
    hidden states are read row by row, from a file that only open processes see, or that of the cache. Where that can't
    be, nothing changes, and a note says so.

    Args:
        kept_outputs: reads them from the cache where an earlier run kept them; None computes them.
        compute: false puts zeros in their place: their time is what an update takes then, for `finetune plan`.

    Raises:
        TrainingError: there is no memory for a batch of the frozen layers.
    """
    if not _asked(trainer):
        yield
        return
    line, task = _Line(trainer), trainer.task
    obstacle, rows = line.obstacle(), {}
    try:
        for name in SPLITS if not obstacle else ():
            rows[name] = line.rows_of(name, kept_outputs) if compute else line.blank(name)
    except _NoRoom as no_room:
        obstacle = str(no_room)
    if obstacle:
        say(trainer.accelerator, f"note: the frozen layers run in every epoch, because {obstacle}")
        yield
        return
    trainer.task = replace(
        task,
        rows={**task.rows, **rows},
        collate=_Collate(task.collate, cast(Any, trainer.model).main_input_name),
        loss_sum=line.given(task.loss_sum),
        outputs=line.given(task.outputs),
    )
    try:
        with line.skipped():
            yield
    finally:
        trainer.task = task


def reuses_layers(trainer: Trainer) -> bool:
    """Whether `reused_layers` will compute them once."""
    if not _asked(trainer):
        return False
    line = _Line(trainer)
    return not (line.obstacle() or line.lacks_room(*SPLITS))


def seconds_of_a_token(trainer: Trainer, clock: Callable[[], float]) -> float:
    """Time of a token of the frozen layers, from a batch of validation rows."""
    rows, line = trainer.task.rows["valid"], _Line(trainer)
    batches = line.batches(rows)
    typical = batches[len(batches) // 2]
    line.hidden_BTD(line.batch(rows, typical))  # warm-up
    started = clock()
    line.hidden_BTD(line.batch(rows, typical))
    return (clock() - started) / float(cast(np.ndarray, rows.lengths)[typical].sum())


def _asked(trainer: Trainer) -> bool:
    adapter, plan = trainer.adapter, trainer.plan
    if not isinstance(adapter, Layers) or not adapter.reuse_features or not adapter.freeze_below:
        return False
    # Within an epoch each row is asked for once, and there is nothing to reuse.
    return plan.total_updates > plan.updates_per_epoch


class _Line:
    """Between the frozen layers and those that are trained.

    Attributes:
        layers: the frozen ones, from the lowest up.
        below_BTD: what they gave for the batch that is on its way; None lets them compute.
        dtype: of what they give in training.
        in_tuple: whether a layer gives it as the first of several things.
        width: numbers of a token.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.task, self.model = trainer, trainer.task, trainer.model
        adapter = cast(Layers, trainer.adapter)
        self.layers: Sequence[Any] = list(layer_list(self.model)[1])[: adapter.freeze_below]
        self.below_BTD: torch.Tensor | None = None
        self.dtype, self.in_tuple, self.width = torch.float32, False, 0

    def obstacle(self) -> str:
        """Why hidden states can't be reused; "" when they can. Collective."""
        task, accelerator = self.task, self.trainer.accelerator
        if any(task.rows[name].lengths is None or not getattr(task.rows[name], "fixed", False) for name in SPLITS):
            return "rows have no length, or are varied anew each epoch"
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            return "weights are sharded"
        if accelerator.num_processes != int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            return "not all processes are known to be on this machine, whose files they share"
        settings = self.trainer.settings
        if "train.skip_padding" in Kernels(accelerator.device, settings).in_use(self.model, False, causal=False):
            return "they compute without padding (train.skip_padding)"
        self.model.to(accelerator.device)
        training = self.model.training
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode():
                found = self._does_not_fit()
        finally:
            self.model.train(training)
        return self._agreed(found)

    def _agreed(self, found: str) -> str:
        """One verdict of all processes. Collective."""
        accelerator = self.trainer.accelerator
        agreed = accelerator.reduce(torch.tensor(float(bool(found)), device=accelerator.device), reduction="sum")
        return found or ("another process found so" if agreed.item() else "")

    def _does_not_fit(self) -> str:
        task, rows = self.task, self.task.rows["valid"]
        batch = self.batch(rows, np.arange(min(PROBE_ROWS, len(rows))))
        self.model.eval()
        whole = task.logits(self.model, batch).float()
        found_BTD = self._hidden(batch)
        if found_BTD is None or found_BTD.ndim != 3:
            return "what they give can't be told from the rest of the model"
        hidden_BTD, self.width = found_BTD.clone(), found_BTD.shape[-1]
        for row, length in enumerate(cast(np.ndarray, rows.lengths)[: len(hidden_BTD)]):
            hidden_BTD[row, length:] = 0
        with self.skipped():
            given = self.given(task.logits)(self.model, {**batch, BELOW: hidden_BTD}).float()
        if whole.shape != given.shape or (whole - given).abs().max() > TOLERANCE * max(1.0, float(whole.abs().max())):
            return "the model reads more of what is below them"
        self.dtype = self.hidden_BTD(batch).dtype
        self.trainer.adapter.train_mode(self.model)
        if not torch.equal(cast(torch.Tensor, self._hidden(batch)), found_BTD):
            return "the model drops something out below them, which they would give only once"
        return ""

    def lacks_room(self, *splits: str) -> str:
        """Why what some splits' rows give does not go on the disk; "" when it does. Collective, before any process
        takes the room: what is free is not the same a moment later."""
        tokens = sum(int(cast(np.ndarray, self.task.rows[name].lengths).sum()) for name in splits)
        checkpoints = getattr(self.trainer, "checkpoints", None)
        free = shutil.disk_usage(Path.cwd() if checkpoints is None else checkpoints.folder.parent).free
        if (needed := tokens * self.width * 4) > MOST_OF_DISK * free:
            return self._agreed(
                f"what they give would take {needed / 2**30:,.1f} of {free / 2**30:,.1f} GiB of free disk"
            )
        return self._agreed("")

    def batch(self, rows: Rows, index: np.ndarray) -> Batch:
        some = rows.__getitems__([RowKey(0, int(row)) for row in index])
        return to_device(self.task.collate(some), self.trainer.accelerator.device)

    def batches(self, rows: Rows) -> list[np.ndarray]:
        return planned_batches(rows, self.task.collate, self.trainer.accelerator.device)

    def hidden_BTD(self, batch: Batch) -> torch.Tensor:
        """What the frozen layers give in training, in its precision."""
        accelerator = self.trainer.accelerator
        self.model.eval()
        with (
            torch.inference_mode(),
            accelerator.autocast(),
            Kernels(accelerator.device, self.trainer.settings).used(self.model),
        ):
            return cast(torch.Tensor, self._hidden(batch))

    def _hidden(self, batch: Batch) -> torch.Tensor | None:
        def stop(_: torch.nn.Module, __: Any, output: Any) -> None:
            self.in_tuple = not isinstance(output, torch.Tensor)
            raise _Reached(output[0] if self.in_tuple else output)

        handle = self.layers[-1].register_forward_hook(stop)
        try:
            self.task.logits(self.model, batch)
        except _Reached as reached:
            return reached.hidden_BTD
        finally:
            handle.remove()
        return None

    def rows_of(self, split: str, kept: KeptOutputs | None) -> HiddenRows:
        """Rows of a split with their hidden states. Collective.

        Raises:
            TrainingError: there is no memory for a batch of the frozen layers.
            _NoRoom: they were not kept, and there is no room for them on the disk.
        """
        rows, accelerator, task = self.task.rows[split], self.trainer.accelerator, self.task
        offsets = _offsets(rows)
        if kept is None:
            return HiddenRows(rows, self._computed(split, offsets), offsets)
        hidden_ND = kept(
            self.model,
            rows,
            task.collate,
            lambda _, batch: self.hidden_BTD(batch),
            accelerator,
            f"hidden states of {split}",
            # Any head reads them.
            frozen=getattr(self.model, str(getattr(self.model, "base_model_prefix", "")), None),
            part=f"below layer {len(self.layers)}",
            lines=int(offsets[-1]),
            compute=lambda: (self._computed(split, offsets), True),
        )
        return HiddenRows(rows, hidden_ND, offsets)

    def blank(self, split: str) -> HiddenRows:
        """Rows of a split with zeros in place of their hidden states."""
        rows = self.task.rows[split]
        offsets = _offsets(rows)
        return HiddenRows(rows, np.broadcast_to(np.float32(0.0), (int(offsets[-1]), self.width)), offsets)

    def _computed(self, split: str, offsets: np.ndarray) -> np.ndarray:
        """Of all tokens of a split, [tokens, D]. Collective."""
        if no_room := self.lacks_room(split):
            raise _NoRoom(no_room)
        rows, accelerator = self.task.rows[split], self.trainer.accelerator
        shape = (int(offsets[-1]), self.width)
        path = self.trainer.checkpoints.folder.parent / f"hidden-{split}.tmp"
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_file(path, shape[0] * shape[1] * np.dtype(np.float32).itemsize)
        accelerator.wait_for_everyone()
        hidden_ND = np.memmap(path, np.float32, mode="r+", shape=shape)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with contextlib.suppress(PermissionError):  # a system that keeps the names of open files
                path.unlink()
        mine = self.batches(rows)[accelerator.process_index :: accelerator.num_processes]
        with passing_bar(accelerator, f"frozen layers of {split}", len(mine), "batch") as bar:
            for index in mine:
                with (short := Shortage(self.model)).noted():
                    found_BTD = self.hidden_BTD(self.batch(rows, index))
                if short.met:
                    raise TrainingError(
                        f"No memory was left for {len(index)} rows at a time in the frozen layers.",
                        "Set adapter.reuse_features=false, which takes no more than train.micro_batch_size rows.",
                    )
                for row, some_TD in zip(index, found_BTD.float().cpu().numpy(), strict=True):
                    start, end = offsets[row], offsets[row + 1]
                    hidden_ND[start:end] = some_TD[: end - start]
                forget_pages(hidden_ND)
                bar.update()
        accelerator.wait_for_everyone()
        return hidden_ND

    def given(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A function of the task that is given batches with what is below the line."""

        def called(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            self.below_BTD = batch[BELOW].to(self.dtype)
            try:
                return function(model, {name: value for name, value in batch.items() if name != BELOW})
            finally:
                self.below_BTD = None

        return called

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """A context in which frozen layers hand on what is given for a batch, and compute where nothing is."""
        before = [vars(layer).get("forward") for layer in self.layers]
        for layer in self.layers:
            layer.forward = self._handing_on(layer.forward)
        try:
            yield
        finally:
            for layer, own in zip(self.layers, before, strict=True):
                del layer.forward  # the class's own shows again
                if own is not None:
                    layer.forward = own

    def _handing_on(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if self.below_BTD is None:
                return own(hidden_states, *arguments, **named)
            return (self.below_BTD,) if self.in_tuple else self.below_BTD

        return forward


def _offsets(rows: Rows) -> np.ndarray:
    """Where each row's tokens begin among those of all rows, and where the last one's end."""
    return np.concatenate([[0], np.cumsum(cast(np.ndarray, rows.lengths))])


def _make_file(path: Path, size: int) -> None:
    """A file of zeros. Where it can be, its room is taken at once: a full disk is an error here, and later a crash."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


class _NoRoom(Exception):
    """Hidden states don't go on the disk; why."""


class _Reached(Exception):
    """The line was reached: what is above it need not be computed."""

    def __init__(self, hidden_BTD: torch.Tensor) -> None:
        self.hidden_BTD = hidden_BTD


@dataclass(frozen=True)
class HiddenRows:
    """Rows with what the frozen layers gave for them.

    Attributes:
        rows: what it was computed from.
        hidden_ND: of all rows end to end, [tokens, D] fp32.
        offsets: row i has hidden_ND[offsets[i]:offsets[i + 1]], [rows + 1].
    """

    rows: Rows
    hidden_ND: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray | None:
        return self.rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        forget_pages(self.hidden_ND)  # those of the last rows, which were read after they were given
        spans = [slice(self.offsets[key.index], self.offsets[key.index + 1]) for key in keys]
        found = self.rows.__getitems__(keys)
        return [{**row, BELOW: self.hidden_ND[span]} for row, span in zip(found, spans, strict=True)]


@dataclass(frozen=True)
class _Collate:
    """The task's own, and hidden states padded to the batch's length."""

    collate: Collate
    main_input: str

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = self.collate([{name: value for name, value in row.items() if name != BELOW} for row in rows])
        length, width = batch[self.main_input].shape[1], rows[0][BELOW].shape[1]
        below_BTD = np.zeros((len(rows), length, width), dtype=np.float32)
        for row, some in enumerate(rows):
            below_BTD[row, : len(some[BELOW])] = some[BELOW]
        return {**batch, BELOW: torch.from_numpy(below_BTD)}
