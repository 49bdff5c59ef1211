"""What Python's own audit hook sees while something hostile is read, and no refusal message would show.

A pickle that looks up a class, a process, a connection, a file opened for writing outside of the case's folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.cache import cache_dir

EVENTS = {
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "marshal.loads",
}


class Watch:
    """What happened while it was on. Audit hooks can't be taken away, so there is one for the process."""

    def __init__(self) -> None:
        self.allowed: list[Path] = []
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in EVENTS and not (event == "marshal.loads" and _importing()):
            self.seen.append(f"{event} {str(args)[:100]}")
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike) and _writes(args):
            path = Path(os.path.abspath(os.fsdecode(args[0])))
            if (
                path != Path(os.devnull)
                and path.suffix not in (".pyc",)
                and "__pycache__" not in path.parts
                and not any(path.is_relative_to(f) for f in self.allowed)
            ):
                self.seen.append(f"wrote {path}")

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        # The cache is the toolkit's own; what gets into it is named by hashes, and looked at by the tests of it.
        self.allowed, self.seen, self.on = [folder.resolve(), cache_dir().resolve()], [], True
        try:
            yield self.seen
        finally:
            self.on = False


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    return (
        bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
