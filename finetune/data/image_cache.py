"""The cache of decoded images: each set of files is decoded and resized once, and kept memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data import image_decoding
from finetune.data.cache import cache_folder, disk_errors, say, turn
from finetune.data.image_decoding import BrokenImage, decode, resized
from finetune.data.image_sources import Item
from finetune.errors import DataError
from finetune.files import sha256_file, sync_file, sync_folder

META = "meta.json"


@dataclass(frozen=True)
class Resizing:
    """What is kept of each image: its shorter side's pixels, the interpolation, and the centre square's pixels."""

    shorter: int
    resample: int
    square: int


@dataclass(frozen=True)
class Decoded:
    """Images as the cache keeps them, in the order of their items."""

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int64]
    digests: list[str]
    """SHA-256 of each image's pixels before resizing; empty for a broken one."""
    broken: dict[int, str]


def decode_all(items: Sequence[Item], max_megapixels: float, resizing: Resizing) -> Decoded:
    """All images, from the cache when the same files were decoded before.

    Raises:
        DataError: a file that is not there, or a folder that may not be read.
    """
    digest = hashlib.sha256(json.dumps([resizing.shorter, resizing.resample, max_megapixels]).encode())
    for path in (image_decoding.__file__, __file__):  # images kept by other code are not taken for this code's
        digest.update(sha256_file(Path(path)).encode())
    for item in items:
        digest.update(f"{_content_hash(item)}\n".encode())
    folder = cache_folder("images") / digest.hexdigest()[:32]
    with turn(f"images-{folder.name}", "decoding the same images"):
        meta = _verified(folder)
        if meta is None:
            with disk_errors(folder.parent):
                meta = _write(items, max_megapixels, resizing, folder)
    pixels: Any = np.zeros(0, np.uint8)
    if meta["pixels"]:
        pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")
    return Decoded(
        pixels,
        np.load(folder / "offsets.npy"),
        np.load(folder / "heights.npy"),
        meta["digests"],
        {int(index): reason for index, reason in meta["broken"].items()},
    )


def _content_hash(item: Item) -> str:
    if isinstance(item.content, Path):
        try:
            return sha256_file(item.content)
        except FileNotFoundError:
            raise DataError(
                f"{item.place}: there is no file {item.content}.", "Paths are relative to the table."
            ) from None
        except OSError as error:
            raise DataError(f"{item.place}: {item.content} can't be read: {error.strerror}.", "Mend it.") from None
    raw = item.content if isinstance(item.content, bytes) else item.content.tobytes()
    return hashlib.sha256(raw).hexdigest()


def _write(items: Sequence[Item], max_megapixels: float, resizing: Resizing, folder: Path) -> dict[str, Any]:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".images-"))
    heights, ends, digests, broken = [], [0], [], {}
    try:
        with (temporary / "pixels.bin").open("wb") as file:
            for index, item in enumerate(items):
                try:
                    whole = decode(item.content, max_megapixels)
                except BrokenImage as error:
                    broken[str(index)] = str(error)
                    heights.append(0)
                    digests.append("")
                    ends.append(ends[-1])
                    continue
                small = resized(whole, resizing.shorter, resizing.resample)
                digests.append(hashlib.sha256(str(whole.shape).encode() + whole.tobytes()).hexdigest())
                heights.append(small.shape[0])
                ends.append(ends[-1] + small.size)
                file.write(small.tobytes())
        np.save(temporary / "offsets.npy", np.array(ends, np.int64), allow_pickle=False)
        np.save(temporary / "heights.npy", np.array(heights, np.int64), allow_pickle=False)
        files = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        meta = {"pixels": ends[-1], "digests": digests, "broken": broken, "files": files}
        (temporary / META).write_text(json.dumps(meta))
        for path in temporary.iterdir():
            sync_file(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


def _verified(folder: Path) -> dict[str, Any] | None:
    """The description of kept images whose files are as they were written."""
    if not folder.exists():
        return None
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_bytes())
        if all(sha256_file(folder / name) == sha256 for name, sha256 in meta["files"].items()):
            return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    say(f"The images {folder} in the cache are damaged: decoding them again.")
    return None
