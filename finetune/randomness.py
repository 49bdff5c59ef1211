"""Random numbers as functions of what they are for: never of the rank, the process count or what ran before."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def fold(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose, for example `fold(seed, "dropout", update, shard)`.

    Restoring generator states cannot give exact resume at another process count; folding can, because there is
    no state to restore.
    """
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(fold(seed, *parts))


def seed_torch(seed: int, *parts: int | str) -> None:
    """Seed torch's generators (CPU and accelerators) for what follows, for example one micro-shard's dropout."""
    number = fold(seed, *parts)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # torch would note a stack trace for each kind of device that is not there: a third of a millisecond
        torch.default_generator.manual_seed(number)
