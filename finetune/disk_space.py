"""Whether a run's files will fit on the disk, said before training and not after the first hours of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.trainer import Trainer

# Tensors of a parameter's size that an optimizer keeps at most (AdamW's two averages).
MOMENTS = 2
# The model may stand in a folder twice: the base that an adapter refers to, and the exported, merged one.
MODELS_OF_AN_ADAPTER = 2


def check_disk_space(trainer: Trainer, folder: Path) -> None:
    """Refuse a run whose checkpoints and model won't fit; what a resumed run has on the disk already counts as room.

    Args:
        folder: the run's folder; it need not exist.

    Raises:
        ConfigError: with the bytes needed and those that are free.
    """
    checkpoint, model = checkpoint_bytes(trainer), model_bytes(trainer)
    # The newest ones, the best, and the one that is being written while all of them stand.
    kept = min(trainer.settings.keep_checkpoints, trainer.plan.total_updates) + 2
    needed = checkpoint * kept + model
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free + there < needed:
        raise ConfigError(
            f"The run needs up to {_gb(needed)} in {folder} ({kept} checkpoints of {_gb(checkpoint)}, "
            f"the model {_gb(model)}), and {_gb(free + there)} are free.",
            "Make room, name another disk with --output, or lower train.keep_checkpoints.",
        )


def checkpoint_bytes(trainer: Trainer) -> int:
    """Of one checkpoint at most: what is trained, the optimizer's averages of it, and all buffers."""
    trained = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in trainer.model.buffers())
    return trained * (1 + MOMENTS) + buffers


def model_bytes(trainer: Trainer) -> int:
    """Of the exported model, and of an adapter's base beside it."""
    parameters = [(p.numel() * p.element_size(), p.requires_grad) for p in trainer.model.parameters()]
    whole = sum(size for size, _ in parameters)
    return whole if all(trained for _, trained in parameters) else whole * MODELS_OF_AN_ADAPTER


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
