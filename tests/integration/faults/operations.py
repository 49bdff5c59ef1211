"""What a save asks of the file system, one operation after the other: counted, died at, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune import checkpoint

# All that saving and rotating call; shutil.rmtree is made of the last three.
OF_OS = ("fsync", "rename", "replace", "mkdir", "open", "unlink", "rmdir")


@contextmanager
def watched(before: Callable[[int, str, Any], None], after: Callable[[int, str, Any], None]) -> Iterator[None]:
    """Call `before` and `after` with (number, name, first argument) around every operation."""
    count = 0

    def around(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            number, count = count, count + 1
            before(number, name, args[0])
            try:
                return real(*args, **kwargs)
            finally:
                after(number, name, args[0])

        return call

    owners = [(os, name) for name in OF_OS] + [(checkpoint, "save_file"), (checkpoint, "sync_folder")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in owners]
    try:
        for owner, name, real in kept:
            setattr(owner, name, around(name, real))
        yield
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)
