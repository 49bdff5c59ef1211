"""How the gradients of an update's micro-shards come together: averaged by DDP, or summed in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import ConfigError, TrainingError
from finetune.memory import Shortage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.data.updates import MicroBatch

ShardLoss = Callable[["MicroBatch"], torch.Tensor]


class Gradients(Protocol):
    """Leaves the gradient of an update's mean loss (and penalty) in the parameters of every process."""

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model as `accumulate` takes it: on its device, in its precision."""

    def prepare_again(self, model: torch.nn.Module) -> torch.nn.Module:
        """The prepared model, once other parameters of it are trained than when it was prepared."""

    def accumulate(
        self,
        model: torch.nn.Module,
        micro_batches: Sequence[MicroBatch],
        loss_sum: ShardLoss,
        count: torch.Tensor,
        penalty: Callable[[], torch.Tensor | None],
    ) -> torch.Tensor:
        """Forward and backward through this process's micro-batches.

        Returns:
            [2]: the mean loss over all processes, and how many of them had no memory for it. Where that is not 0 the
            gradients of all are good for nothing.

        Raises:
            TrainingError: a process had no memory where the others can't be told.

        Args:
            loss_sum: micro-batch to the sum of its losses; 0 for an empty one.
            count: what the sum over all micro-batches and processes is divided by.
            penalty: added once an update to the mean loss, or None.
        """

    def undo(self) -> None:
        """Put back what the last `accumulate` changed besides gradients, in every process: BatchNorm's statistics."""


class Averaged:
    """By DDP: one reduction an update, beside the last backward pass. Its order of sums depends on the processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def undo(self) -> None:
        for buffer, before in self.statistics:
            buffer.copy_(before)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        prepared: torch.nn.Module = self.accelerator.prepare_model(model)
        return prepared

    def prepare_again(self, model: torch.nn.Module) -> torch.nn.Module:
        if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
            return model
        # DDP reduces what was trained when it wrapped: what is unfrozen later would stay each process's own, and what
        # is frozen would be waited for.
        inner = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        return self.prepare(inner)

    def accumulate(
        self,
        model: torch.nn.Module,
        micro_batches: Sequence[MicroBatch],
        loss_sum: ShardLoss,
        count: torch.Tensor,
        penalty: Callable[[], torch.Tensor | None],
    ) -> torch.Tensor:
        accelerator, short = self.accelerator, Shortage(model)
        total = torch.zeros(2, device=accelerator.device)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self.statistics = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers(recurse=False)]
        reducing = False

        def backward(micro: MicroBatch, last: bool) -> torch.Tensor:
            nonlocal reducing
            # A shard without rows still takes part in the reduction: it sends a borrowed row through, times 0.
            shard_sum = loss_sum(micro)
            # DDP averages over processes, hence the factor. An update without any target moves nothing.
            loss = shard_sum * (accelerator.num_processes / count.clamp(min=1e-30)).to(shard_sum.dtype)
            if last and (added := penalty()) is not None:
                loss = loss + added
            reducing = last
            accelerator.backward(loss)
            return shard_sum.detach()

        for micro in micro_batches:
            last = micro is micro_batches[-1]
            with nullcontext() if last else accelerator.no_sync(model), short.noted():
                if not short.met:
                    total[0] += backward(micro, last)
        if short.met:
            short.make_room()
            # The others wait in a reduction. They get gradients that are good for nothing, and are told below; one that
            # was broken off can't be joined again.
            alone = accelerator.num_processes == 1
            if not alone and (reducing or not self._takes_part(model, micro_batches[-1], loss_sum)):
                raise TrainingError(
                    f"No memory was left in process {accelerator.process_index} for a micro-batch of "
                    f"{max(len(micro.rows) for micro in micro_batches)} rows, and the others can't begin the update "
                    "again.",
                    "Go on from the last checkpoint with --resume and a smaller --set train.micro_batch_size: nothing "
                    "else changes.",
                )
        total[1] = float(short.met)
        mean, failed = accelerator.reduce(total, reduction="sum")
        return torch.stack([mean / count.clamp(min=1e-30), failed.to(count.dtype)])

    def _takes_part(self, model: torch.nn.Module, micro: MicroBatch, loss_sum: ShardLoss) -> bool:
        """Whether one row of a micro-batch went through both passes, times 0, and with it the update's reduction."""
        if len({len(value) for value in micro.batch.values()}) > 1:
            return False  # not all of it is rows
        row = replace(micro, batch={name: value[:1] for name, value in micro.batch.items()})
        with (short := Shortage(model)).noted():
            self.accelerator.backward(loss_sum(row) * 0)
        return not short.met


class InOrder:
    """Shard by shard in the order of their numbers: the same bits on 1, 2 or 4 CPU processes, for their price.

    Every process gets every shard's gradient and adds it up itself, so an update sends `shards` times the gradient
    where DDP sends it about once.

    Raises:
        ConfigError: the model or the machine can't keep the promise.
    """

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module) -> None:
        if accelerator.device.type != "cpu":
            raise ConfigError(
                "train.deterministic=elastic gives the same bits on CPUs only; a GPU's kernels add in any order.",
                "Take the default, which is exact up to rounding at any number of processes.",
            )
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise ConfigError(
                "train.deterministic=elastic can't keep its promise for a model with BatchNorm, whose statistics are "
                "those of each process's own rows.",
                "Take the default.",
            )
        self.accelerator = accelerator

    def undo(self) -> None:
        """Never called: it raises where memory ends, and takes no model with BatchNorm."""

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        # For its precision alone: a wrapped model would average gradients by itself.
        prepared: torch.nn.Module = self.accelerator.prepare_model(model, evaluation_mode=True)
        return prepared

    def prepare_again(self, model: torch.nn.Module) -> torch.nn.Module:
        return model  # `accumulate` asks each time what is trained

    def accumulate(
        self,
        model: torch.nn.Module,
        micro_batches: Sequence[MicroBatch],
        loss_sum: ShardLoss,
        count: torch.Tensor,
        penalty: Callable[[], torch.Tensor | None],
    ) -> torch.Tensor:
        accelerator = self.accelerator
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Gradients, then the loss, then whether the shard has rows: one message a shard.
        own = torch.zeros(sum(parameter.numel() for parameter in trained) + 2)
        total = torch.zeros_like(own)
        for micro in micro_batches:
            if not micro.is_empty:
                with (short := Shortage(model)).noted():
                    shard_sum = loss_sum(micro)
                    accelerator.backward(shard_sum * (1.0 / count.clamp(min=1e-30)).to(shard_sum.dtype))
                if short.met:
                    raise TrainingError(
                        f"No memory was left for a micro-batch of {len(micro.rows)} rows, and with "
                        "train.deterministic=elastic a smaller one is another run: sums are added in its order.",
                        f"Start anew with --set train.micro_batch_size={max(1, len(micro.rows) // 2)}.",
                    )
                for part, parameter in zip(_split(own, trained), trained, strict=True):
                    part.copy_(torch.zeros_like(part) if parameter.grad is None else parameter.grad)
                    parameter.grad = None
                own[-2] = shard_sum.detach()
            own[-1] = float(not micro.is_empty)
            for shard in accelerator.gather(own.unsqueeze(0)):  # in the order of ranks, which is that of shard numbers
                if shard[-1]:
                    total += shard
        for part, parameter in zip(_split(total, trained), trained, strict=True):
            parameter.grad = part.clone()
        if (added := penalty()) is not None:
            accelerator.backward(added)
        return torch.stack([total[-2].to(count.dtype) / count.clamp(min=1e-30), torch.zeros_like(count)])


def _split(flat: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Views of a flat tensor, one in the shape of each parameter."""
    parts = flat[: sum(parameter.numel() for parameter in parameters)].split([p.numel() for p in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
