"""Real checkpoints to do harm to: LoRA on the real encoder, saved after each of four updates by the trainer itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoint import Checkpoints, Progress
from finetune.files import sha256_file
from finetune.state import State
from tests.trainers import make_trainer

UPDATES = 4


def real_checkpoints(work: Path) -> Path:
    """The folder of checkpoints, made once: `update_00000001` to `update_00000004`."""
    done = work / "real"
    if not done.exists():
        making = work / "making"
        shutil.rmtree(making, ignore_errors=True)
        settings = (f"train.max_updates={UPDATES}", "train.save_every_updates=1", "train.keep_checkpoints=9")
        make_trainer(making, "adapter=lora", *settings).fit()
        making.rename(done)
    return done / "checkpoints"


def copy_of(real: Path, into: Path, updates: list[int]) -> Path:
    """Some of the real checkpoints in a folder of their own."""
    shutil.rmtree(into, ignore_errors=True)
    for update in updates:
        name = f"update_{update:08d}"
        shutil.copytree(real / name, into / name)
    return into


def read(folder: Path, notes: list[str] | None = None) -> tuple[State, Progress, dict[str, Any]] | None:
    """What a resumed run would take."""
    return Checkpoints(folder, 1, (notes if notes is not None else []).append).newest()


def same(state: State, real: Path, update: int) -> bool:
    """Whether a state is, to the bit, that of an undamaged checkpoint."""
    intact = Checkpoints(real, 9, lambda note: None).read(update)[0]
    if state.numbers != intact.numbers or state.tensors.keys() != intact.tensors.keys():
        return False
    return all(
        own.keys() == state.tensors[stem].keys()
        and all(torch.equal(tensor, state.tensors[stem][name]) for name, tensor in own.items())
        for stem, own in intact.tensors.items()
    )


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
