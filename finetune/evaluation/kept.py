"""What a model gives for rows before any training, kept in the cache: computed once for all runs that ask for it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import finetune
from finetune.data.batching import RowKey, evaluation_batches
from finetune.data.cache import cache_folder
from finetune.errors import SourceError
from finetune.evaluation.predict import MAX_TOKENS, most_rows, predict_all, to_device
from finetune.files import sha256_file, whole_file, write_json
from finetune.launch import say
from finetune.memory import Shortage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.config import TrainSettings
    from finetune.task import Batch, Collate, Rows

# Computed at each reading all the same: one batch of these, whose bits must be those of before.
CHECKED_ROWS = 4


class KeptOutputs:
    """`predict_rows`, read from the cache where the same model was given the same batches before.

    What is kept goes by a hash of all that decides the numbers: the model's weights and structure, every batch as the
    model gets it, precision and switches of training, threads, processor, versions, and this toolkit's own code. A
    recipe's own functions are not in it; so a batch of four rows is computed each time, and what is kept counts only
    if it has the same bits. What is damaged, or can't be written, is computed and said.

    Attributes:
        read: titles of what came from the cache, for the record.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.read: list[str] = []
        # Any switch may move last digits: none of them is worth a list that somebody forgets to add to.
        self._switches = {name: value for name, value in settings.model_dump().items() if isinstance(value, bool)}

    def __call__(
        self,
        model: torch.nn.Module,
        rows: Rows,
        collate: Collate,
        outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
        accelerator: Accelerator,
        title: str,
        frozen: torch.nn.Module | None = None,
    ) -> np.ndarray:
        """As `predict_rows`. The result may be a memory-mapped file, read only.

        Args:
            frozen: the part of the model that decides the outputs, if the rest does not (a new head).
        """
        key = self._key(frozen or model, rows, collate, outputs, accelerator)
        few = _few(model, rows, collate, outputs, accelerator)
        kept = _read(key, few, len(rows), accelerator)
        have = accelerator.reduce(torch.tensor([int(kept is not None)], device=accelerator.device), reduction="sum")
        if kept is not None and int(have) == accelerator.num_processes:
            say(accelerator, f"{title}: {len(rows):,} rows read from the cache, where an earlier run kept them")
            self.read.append(title)
            return kept
        found_RK, as_planned = predict_all(model, rows, collate, outputs, accelerator, title)
        # Smaller batches than planned, for want of memory, are rounded otherwise: the next run may have more.
        if as_planned and few and kept is None and accelerator.is_local_main_process:
            _write(key, found_RK, few, accelerator)
        return found_RK

    def _key(
        self,
        model: torch.nn.Module,
        rows: Rows,
        collate: Collate,
        outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
        accelerator: Accelerator,
    ) -> str:
        digest = hashlib.sha256()
        surroundings = {
            "code": _code(),
            "switches": self._switches,
            "precision": accelerator.mixed_precision,
            "outputs": f"{outputs.__module__}.{getattr(outputs, '__qualname__', type(outputs).__name__)}",
            **_machine(accelerator.device),
        }
        digest.update(json.dumps(surroundings, sort_keys=True).encode())
        _add_model(digest, model)
        most = most_rows(rows, collate, accelerator.device)
        for index in evaluation_batches(rows.lengths, len(rows), most, MAX_TOKENS):
            digest.update(index.astype(np.int64).tobytes())
            _add_tensors(digest, collate(rows.__getitems__([RowKey(0, int(row)) for row in index])))
        return digest.hexdigest()[:32]


def _few(
    model: torch.nn.Module,
    rows: Rows,
    collate: Collate,
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
) -> str:
    """Hash of the outputs of the first rows, in a batch of their own; "" without memory for it."""
    keys = [RowKey(0, row) for row in range(min(CHECKED_ROWS, len(rows)))]
    short = Shortage(model)
    model.eval()
    with torch.inference_mode(), short.noted():
        found_RK = outputs(model, to_device(collate(rows.__getitems__(keys)), accelerator.device)).float().cpu()
    if short.met:
        short.make_room()
        return ""
    return hashlib.sha256(np.ascontiguousarray(found_RK.numpy()).tobytes()).hexdigest()


def _paths(key: str) -> tuple[Path, Path]:
    folder = cache_folder("outputs")
    return folder / f"{key}.npy", folder / f"{key}.json"


def _read(key: str, few: str, rows: int, accelerator: Accelerator) -> np.ndarray | None:
    """[rows, K] fp32; None where there is none, or none that can be relied on."""
    try:
        path, about = _paths(key)
        if not about.is_file():
            return None
        content: Any = json.loads(about.read_text("utf-8"))
        if sha256_file(path) == content["sha256"]:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            if content["few_rows_sha256"] == few and found.ndim == 2 and len(found) == rows:
                return found
        problem = "is damaged, or no longer what the model gives"
    except (OSError, ValueError, KeyError, TypeError, SourceError) as error:
        problem = f"can't be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    say(accelerator, f"note: {key} in the cache's folder outputs {problem}; it is computed anew")
    return None


def _write(key: str, found_RK: np.ndarray, few: str, accelerator: Accelerator) -> None:
    try:
        path, about = _paths(key)
        with whole_file(path) as file:
            np.save(file, np.ascontiguousarray(found_RK), allow_pickle=False)
        write_json(about, {"sha256": sha256_file(path), "few_rows_sha256": few})  # last: without it nothing is read
    except (OSError, SourceError) as error:
        say(accelerator, f"note: the next run computes this again, because it can't be kept: {error}")


def _machine(device: torch.device) -> dict[str, Any]:
    """What rounds otherwise on another machine, or on this one with other software."""
    from finetune.hardware import describe
    from finetune.record import versions

    threads = torch.get_num_threads()
    described = {name: value for name, value in describe(1, threads).items() if name != "memory_gb"}
    return {
        "device": device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "hardware": described,
        "versions": versions(),
    }


def _add_model(digest: Any, model: torch.nn.Module) -> None:
    digest.update(f"{type(model).__module__}.{model!r}".encode())
    if config := getattr(model, "config", None):
        settings = {name: value for name, value in config.to_dict().items() if not name.endswith("name_or_path")}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    _add_tensors(digest, model.state_dict())


def _add_tensors(digest: Any, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


@functools.cache
def _code() -> str:
    """Hash of this toolkit's own sources: what other code computed is not taken for this code's."""
    digest = hashlib.sha256()
    for path in sorted(Path(finetune.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
