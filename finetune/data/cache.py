"""The cache folder: where it is, how files get into it whole, how processes take turns, and what lies in it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from finetune.errors import SourceError
from finetune.files import sha256_file, whole_file

# The standard's first line makes backup programs skip the folder; the second is how `cache clear` knows its own.
TAG_NAME = "CACHEDIR.TAG"
TAG_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
TAG_OWNER = "# This folder is the cache of the finetune toolkit. `finetune cache clear` empties it."
FOLDERS = {
    "wheels": "wheels as the registry has them",
    "pypi": "models and data unpacked from wheels",
    "models": "models converted from GGUF, torchvision's or other files",
    "data": "tables read once and kept as Arrow",
    "images": "images decoded and resized once",
    "tokens": "token ids of rows, computed once",
    "outputs": "what pretrained models give for rows, computed once",
    "locks": "turns of parallel processes",
}


def cache_dir() -> Path:
    """The cache folder: $FINETUNE_CACHE, else `finetune` in the user's own cache folder. It need not exist."""
    if chosen := os.environ.get("FINETUNE_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "finetune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "finetune" / "Cache"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative value is to be ignored.
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".cache") / "finetune"


def cache_folder(name: str) -> Path:
    """One of the cache's own folders (see FOLDERS), made and marked as ours when it is missing.

    Raises:
        SourceError: the folder can't be written.
    """
    folder = cache_dir() / name
    with disk_errors(cache_dir()):
        folder.mkdir(parents=True, exist_ok=True)
        tag = cache_dir() / TAG_NAME
        if not tag.exists():
            with whole_file(tag) as file:
                file.write(f"{TAG_SIGNATURE}\n{TAG_OWNER}\n".encode())
    return folder


def is_our_cache(folder: Path) -> bool:
    """Whether the folder carries this toolkit's own tag, so that nothing else is ever emptied."""
    try:
        lines = (folder / TAG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return lines[:2] == [TAG_SIGNATURE, TAG_OWNER]


@contextmanager
def turn(key: str, doing: str) -> Iterator[None]:
    """Hold the cache's lock named `key`, so that parallel processes fetch and unpack a thing once.

    The operating system frees the lock when its holder dies, so a killed run never blocks the next one.

    Raises:
        SourceError: the lock can't be made.
    """
    path = cache_folder("locks") / f"{key}.lock"
    lock = filelock.FileLock(path)
    with disk_errors(cache_dir()):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"waiting for another process that is {doing} (lock {path})")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path, setting: str = "FINETUNE_CACHE") -> Iterator[None]:
    """Turn what a disk can do to us (full, quota, read-only, no permission) into one clear SourceError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(
                f"No space left for {folder}: {reason}.",
                f"Free some space (`finetune cache ls` shows what the cache holds), or set {setting} to a folder "
                "on another disk.",
            ) from error
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(folder) else ""
        raise SourceError(
            f"Can't use the cache folder {folder}: {reason}{where}.",
            f"Set {setting} to a folder that you can write.",
        ) from error


def say(message: str) -> None:
    """One line to the person at the terminal; stdout stays free for results."""
    print(message, file=sys.stderr, flush=True)


@dataclass
class Manifest:
    """What was unpacked from one wheel: FOLDER.json beside the folder, where no member can overwrite it."""

    package: str
    version: str
    wheel_sha256: str
    requests: set[str]
    """Members and folders ("folder/") asked for so far, each completely unpacked."""
    members: dict[str, str]
    """Member name -> SHA-256 of its bytes."""

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the manifest of a folder of members is."""
        return folder.with_name(f"{folder.name}.json")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None when it is missing, unreadable or not of this shape."""
        try:
            values: Any = json.loads(cls.path(folder).read_bytes())
            found = cls(
                values["package"], values["version"], values["wheel_sha256"], set(values["requests"]), values["members"]
            )
            pairs = found.members.items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        texts = [
            found.package,
            found.version,
            found.wheel_sha256,
            *found.requests,
            *(x for pair in pairs for x in pair),
        ]
        return found if all(isinstance(text, str) for text in texts) else None

    def write(self, folder: Path) -> None:
        """Write it whole; its members must be on disk already."""
        values = {
            "package": self.package,
            "version": self.version,
            "wheel_sha256": self.wheel_sha256,
            "requests": sorted(self.requests),
            "members": dict(sorted(self.members.items())),
        }
        with whole_file(self.path(folder)) as file:
            file.write(json.dumps(values, indent=1).encode())

    def is_whole(self, folder: Path, name: str) -> bool:
        """Whether the member is there, is a plain file inside the folder, and has its recorded hash."""
        path = folder.joinpath(*name.split("/"))
        if (
            name not in self.members
            or not path.is_file()
            or path.resolve() != folder.resolve().joinpath(*name.split("/"))
        ):
            return False  # missing, or reached through a link that unpacking never makes
        return sha256_file(path) == self.members[name]
