"""Checkpoints that are whole or absent: safetensors and JSON, a manifest of SHA-256 last, then one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.errors import CheckpointError
from finetune.files import sha256_file, sync_file, sync_folder, write_json
from finetune.state import State

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer it is all that a run needs to go on.

    Attributes:
        update: optimizer updates done.
        rows: rows trained on, over all processes.
        tokens: tokens trained on (padding left out), over all processes.
        best_update: update of the best validation metric so far; 0 before the first evaluation.
        best_value: that metric.
        evals_without_gain: evaluations since then.
        stopped_early: the plan was ended by early stopping.
    """

    update: int = 0
    rows: int = 0
    tokens: int = 0
    best_update: int = 0
    best_value: float | None = None
    evals_without_gain: int = 0
    stopped_early: bool = False


class Checkpoints:
    """The checkpoints of one run: `update_00000120/` each, found by content and not by file time."""

    def __init__(self, folder: Path, keep: int, note: Callable[[str], None]) -> None:
        self.folder = folder
        self.keep = keep
        self.note = note

    def save(self, state: State, progress: Progress, identity: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those that neither are the newest `keep` nor the best. One process calls it.

        Raises:
            CheckpointError: the disk is full, read-only or broken; older checkpoints are untouched.
        """
        final = self.path(progress.update)
        temporary = self.folder / f".writing-{final.name}"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            hashes = {}
            for stem, tensors in state.tensors.items():
                path = temporary / f"{stem}.safetensors"
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
                hashes[path.name] = _synced_sha256(path)
            content = {
                "format": FORMAT,
                "progress": asdict(progress),
                "identity": dict(identity),
                "numbers": state.numbers,
            }
            write_json(temporary / "state.json", content)
            hashes["state.json"] = sha256_file(temporary / "state.json")
            write_json(temporary / MANIFEST, {"format": FORMAT, "update": progress.update, "sha256": hashes})
            if final.exists():  # damaged, or it would have been resumed from
                self._remove(progress.update)
            os.rename(temporary, final)
            sync_folder(self.folder)
            self._rotate(progress)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of update {progress.update} can't be written to {self.folder}: {error}",
                "Make room or mend the disk, then go on with --resume; earlier checkpoints are untouched.",
            ) from None
        return final

    def path(self, update: int) -> Path:
        return self.folder / f"update_{update:08d}"

    def updates(self) -> list[int]:
        """Updates that have a checkpoint folder, newest first; whether they are whole is not looked at."""
        found = {path.name for path in self.folder.glob("update_*")}
        numbers = (int(name.removeprefix("update_")) for name in found if name.removeprefix("update_").isdecimal())
        # `update_3` and the like are somebody's copies: neither read nor removed.
        return sorted((number for number in set(numbers) if self.path(number).name in found), reverse=True)

    def newest(self) -> tuple[State, Progress, dict[str, Any]] | None:
        """The newest checkpoint that is whole; damaged ones are named and passed over. None when there is none.

        Raises:
            CheckpointError: there are checkpoints, but not one is whole.
        """
        damage: list[str] = []
        for update in self.updates():
            try:
                found = self.read(update)
                self._check_best(found[1])
            except CheckpointError as error:
                damage.append(error.problem)
                self.note(f"{error.problem} It is passed over for the one before it.")
                continue
            return found
        if damage:
            raise CheckpointError(f"No whole checkpoint is left in {self.folder}.", damage[-1])
        return None

    def _check_best(self, progress: Progress) -> None:
        """A run from here may end with the best checkpoint so far: said now if it can't, not after hours of training.

        One that is absent beside newer checkpoints made room for a better one, which training from here comes to again.
        """
        best = progress.best_update
        if best not in (0, progress.update) and (best in self.updates() or progress.update == self.updates()[0]):
            try:
                self._verify(best)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error.problem} It is the best so far, without which update {progress.update} can't go on."
                ) from None

    def read(self, update: int) -> tuple[State, Progress, dict[str, Any]]:
        """One checkpoint, every file checked against the manifest before anything is taken from it.

        Raises:
            CheckpointError: names the file that is missing, damaged or from another checkpoint.
        """
        self._verify(update)
        folder = self.path(update)
        content = _read_json(folder / "state.json")
        try:
            tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
            progress, identity = Progress(**content["progress"]), content["identity"]
            if progress.update != update or not isinstance(identity["settings"], dict):
                raise ValueError("state.json is that of something else")
            return State(tensors, content["numbers"]), progress, identity
        except (SafetensorError, KeyError, TypeError, ValueError) as error:  # whoever wrote it wrote the manifest to it
            raise CheckpointError(f"{folder} is whole, but no checkpoint of this toolkit: {error}.") from None

    def _verify(self, update: int) -> None:
        folder = self.path(update)
        manifest = _read_json(folder / MANIFEST)
        hashes = manifest.get("sha256")
        if manifest.get("format") != FORMAT or manifest.get("update") != update or not isinstance(hashes, dict):
            raise CheckpointError(f"{folder / MANIFEST} is not the manifest of update {update}.")
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        if present != set(hashes):
            odd = sorted(present ^ set(hashes))[0]
            raise CheckpointError(f"{folder / odd} is {'missing' if odd in hashes else 'not in the manifest'}.")
        for name, expected in hashes.items():
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the manifest's.")

    def _rotate(self, progress: Progress) -> None:
        """Called only after the new checkpoint is durable. The best and the newest are never removed."""
        keep = {*self.updates()[: self.keep], progress.update, progress.best_update}
        for update in self.updates():
            if update not in keep:
                self._remove(update)
        for leftover in self.folder.glob(".old-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _remove(self, update: int) -> None:
        """Renamed first: a folder that is half deleted must not look like a checkpoint."""
        doomed = self.folder / f".old-{update}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(self.path(update), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _synced_sha256(path: Path) -> str:
    """Make a file durable; its SHA-256 is computed meanwhile, by a thread, so that a save waits for the slower one."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        hashed = beside.submit(sha256_file, path)
        sync_file(path)
        return hashed.result()


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return content
