"""How the gradients of an update's micro-shards come together: averaged by DDP, or summed in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch

from finetune.errors import ConfigError

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
        """Forward and backward through this process's micro-batches: the mean loss over all processes, a scalar.

        Args:
            loss_sum: micro-batch to the sum of its losses; 0 for an empty one.
            count: what the sum over all micro-batches and processes is divided by.
            penalty: added once an update to the mean loss, or None.
        """


class Averaged:
    """By DDP: one reduction an update, beside the last backward pass. Its order of sums depends on the processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

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
        accelerator = self.accelerator
        total = torch.zeros((), device=accelerator.device)
        for micro in micro_batches:
            last = micro is micro_batches[-1]
            with nullcontext() if last else accelerator.no_sync(model):
                # A shard without rows still takes part in the reduction: it sends a borrowed row through, times 0.
                shard_sum = loss_sum(micro)
                # DDP averages over processes, hence the factor. An update without any target moves nothing.
                loss = shard_sum * (accelerator.num_processes / count.clamp(min=1e-30)).to(shard_sum.dtype)
                if last and (added := penalty()) is not None:
                    loss = loss + added
                accelerator.backward(loss)
            total += shard_sum.detach()
        mean: torch.Tensor = accelerator.reduce(total, reduction="sum") / count.clamp(min=1e-30)
        return mean


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
        if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise ConfigError(
                "train.deterministic=elastic can't keep its promise for a model with BatchNorm, whose statistics are "
                "those of each process's own rows.",
                "Take the default.",
            )
        self.accelerator = accelerator

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
                shard_sum = loss_sum(micro)
                accelerator.backward(shard_sum * (1.0 / count.clamp(min=1e-30)).to(shard_sum.dtype))
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
        return total[-2].to(count.dtype) / count.clamp(min=1e-30)


def _split(flat: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Views of a flat tensor, one in the shape of each parameter."""
    parts = flat[: sum(parameter.numel() for parameter in parameters)].split([p.numel() for p in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
