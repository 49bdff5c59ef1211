"""Model folders made of files in other formats: made once, kept in the cache with their hashes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.data.cache import cache_folder, disk_errors, say, turn
from finetune.files import sha256_file, sync_file, sync_folder, whole_file

MANIFEST = "conversion.json"


def converted_folder(source: Path, key: str, save: Callable[[Path], None]) -> Path:
    """The folder that `save` writes of a file; once for each key. Appears whole or not at all.

    Several processes may ask at once: one converts, the others wait. The files are hashed on each use; damaged ones
    are made again, aloud.
    """
    folder = cache_folder("models") / key
    with turn(f"converted-{key}", f"converting {source.name}"):
        if not _is_whole(folder):
            if folder.exists():
                say(f"cache: {folder} is damaged; converting {source.name} again")
            _convert(source, folder, save)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        hashes: Any = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {path.name for path in folder.iterdir()} - {MANIFEST} == set(hashes) and all(
            sha256_file(folder / file) == sha256 for file, sha256 in hashes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(source: Path, folder: Path, save: Callable[[Path], None]) -> None:
    say(f"converting {source.name} to safetensors, once (into {folder})")
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a killed process: the lock is ours now
        shutil.rmtree(left_over)
    temp = folder.parent / f".{folder.name}-{os.getpid()}"
    try:
        with disk_errors(folder.parent):
            temp.mkdir()
            save(temp)
            hashes = {path.name: sha256_file(path) for path in sorted(temp.iterdir())}
            for path in temp.iterdir():
                path.chmod(0o644)  # safetensors writes 0600, which would shut other users out of a shared cache
                sync_file(path)
            with whole_file(temp / MANIFEST) as file:
                file.write(json.dumps({"from": sha256_file(source), "files": hashes}, indent=1).encode())
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temp, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
