"""Running out of memory: told from other errors, on CPUs and GPUs alike."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.parallel import DistributedDataParallel

from finetune.errors import TrainingError

# A CPU has no error class of its own for it: what PyTorch, C++ and oneDNN say. The last was seen when oneDNN could not
# have its scratch memory.
_SAID = (
    "can't allocate memory", "Cannot allocate memory", "bad_alloc", "could not create a memory object",
    "could not create a primitive",
)  # fmt: skip
OUT_OF_MEMORY = (RuntimeError, MemoryError)
"""What to catch; then ask `is_out_of_memory`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left, rather than anything else that is wrong."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in _SAID)


def shortage(micro_rows: int, scaled: bool) -> str:
    """What is said when an update is begun again with half as many rows at once.

    Raises:
        TrainingError: there is no half, or fp16's scaler would take the attempt for an update.
    """
    if micro_rows == 1:
        raise TrainingError(
            "Not even one row at a time fits into memory.",
            "Take shorter rows (data.max_tokens, data.block_tokens), train.activation_checkpointing=true, an adapter, "
            "or a smaller model.",
        )
    half = (micro_rows + 1) // 2
    if scaled:
        raise TrainingError(
            f"No memory was left for {micro_rows} rows at a time.",
            f"Go on with --resume and --set train.micro_batch_size={half}: the result stays the same.",
        )
    return (
        f"No memory was left for {micro_rows} rows at a time: the update is begun again with {half}, and so are those "
        f"after it. train.micro_batch_size={half} would have begun so."
    )


class Shortage:
    """Whether this process ran out of memory while it ran a model, wrapped for several processes or not."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.met = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A context that ends quietly where the memory does; any other error passes."""
        try:
            yield
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            self.met = True
            error.__traceback__ = None  # its frames hold the activations that are to make room
        if self.met and isinstance(self.model, DistributedDataParallel):
            # A forward pass that broke off has sent its buffers, and not come to where DDP notes that. Sent again,
            # they would be taken for something else by the others.
            self.model.require_forward_param_sync = False

    def make_room(self) -> None:
        """Free what the attempt held. Called after `noted` has ended: until then its frames hold on to it."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
