"""What a model gives for rows before any training, kept in the cache: computed once for all runs that ask for it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import finetune
from finetune.data.batching import RowKey
from finetune.data.cache import cache_folder
from finetune.data.mapped import forget_pages
from finetune.errors import SourceError
from finetune.evaluation.predict import planned_batches, predict_all, to_device
from finetune.files import whole_file, write_json
from finetune.launch import say
from finetune.memory import Shortage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.config import TrainSettings
    from finetune.task import Batch, Collate, Rows

# Computed at each reading all the same: one batch of these, whose bits must be those of before.
CHECKED_ROWS = 4
# Of the free disk: a cache must not take the room that checkpoints were promised.
MOST_OF_DISK = 0.05
# What nobody read for so long is of other code, rows or weights than are asked for by now.
UNREAD_S = 30 * 24 * 3600.0
# Read and written at once of what is kept.
PIECE_BYTES = 1 << 24
_OWN_FILE = re.compile(r"[0-9a-f]{32}\.(npy|json)")


class KeptOutputs:
    """`predict_rows`, read from the cache where the same model was given the same batches before.

    What is kept goes by a hash of what decides the numbers: the model's weights and structure as they were before an
    adapter went in, every batch as the model gets it, precision and switches of training, threads, processor, versions,
    the recipe's source and this toolkit's. A batch of four rows is computed each time besides, and what is kept counts
    only if it has the same bits. What is damaged, or can't be kept, is computed and said.

    Args:
        model: the pretrained one. It and its body are hashed here: an adapter's own start is drawn by the seed, and
            adds nothing to the outputs yet.
        adapter: settings of it that change the pretrained weights themselves.
        recipe_sha256: of the recipe's source, whose functions may make the outputs.

    Attributes:
        read: titles of what came from the cache, for the record.
    """

    def __init__(
        self, settings: TrainSettings, model: torch.nn.Module, adapter: Mapping[str, Any], recipe_sha256: str
    ) -> None:
        self.read: list[str] = []
        body = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
        parts = [part for part in (model, body) if isinstance(part, torch.nn.Module)]
        # By identity: adapters go into a model in place, so that the same object comes to be asked for later.
        known: dict[Any, str] = {}
        self._pretrained = {id(part): (part, _model_digest(part, known)) for part in parts}
        self._fixed = {
            "code": _code(),
            "recipe": recipe_sha256,
            "adapter": [adapter.get("init") or "default", adapter.get("quantize")],
            # Any switch may move last digits: none of them is worth a list that somebody forgets to add to.
            "switches": {name: value for name, value in settings.model_dump().items() if isinstance(value, bool)},
        }

    def __call__(
        self,
        model: torch.nn.Module,
        rows: Rows,
        collate: Collate,
        outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
        accelerator: Accelerator,
        title: str,
        frozen: torch.nn.Module | None = None,
        part: str = "",
        lines: int | None = None,
        compute: Callable[[], tuple[np.ndarray, bool]] | None = None,
    ) -> np.ndarray:
        """As `predict_rows`. The result may be a memory-mapped file, read only. Collective.

        Args:
            frozen: the part of the model that decides the outputs, if the rest does not (a new head).
            part: what else tells these outputs from others of the same function, in words.
            lines: as many as `compute` makes of all rows, where it is not one a row.
            compute: [lines, K] fp32, the same on every process, and whether it came of the planned batches; None is
                `outputs` of each of them, which is given four rows in any case.
        """
        key = self._key(frozen or model, rows, collate, outputs, accelerator, part)
        few = _few(model, rows, collate, outputs, accelerator)
        kept = _read(key, few, len(rows) if lines is None else lines, accelerator) if key else None
        have = accelerator.reduce(torch.tensor([int(kept is not None)], device=accelerator.device), reduction="sum")
        if kept is not None and int(have) == accelerator.num_processes:
            say(accelerator, f"{title}: {len(rows):,} rows read from the cache, where an earlier run kept them")
            self.read.append(title)
            return kept
        if compute is None:
            found_RK, as_planned = predict_all(model, rows, collate, outputs, accelerator, title)
        else:
            found_RK, as_planned = compute()
        # Smaller batches than planned, for want of memory, are rounded otherwise: the next run may have more.
        if key and few and as_planned and kept is None and accelerator.is_local_main_process:
            _write(key, found_RK, few, accelerator)
        return found_RK

    def _key(
        self,
        model: torch.nn.Module,
        rows: Rows,
        collate: Collate,
        outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
        accelerator: Accelerator,
        part: str = "",
    ) -> str:
        """The same on every process; "" where they are on unlike machines, and each would round for itself, or the
        model has tensors of a kind that is not known here."""
        _, pretrained = self._pretrained.get(id(model)) or (model, _model_digest(model, {}))
        if not pretrained:
            return ""
        surroundings = json.dumps(
            {
                **self._fixed,
                "model": pretrained,
                "precision": accelerator.mixed_precision,
                "outputs": f"{outputs.__module__}.{getattr(outputs, '__qualname__', type(outputs).__name__)}",
                "part": part,
                **_machine(accelerator.device, model),
            },
            sort_keys=True,
        )
        batches = planned_batches(rows, collate, accelerator.device)
        # Hashes travel as numbers in tensors, never as pickles: each process fills in those of its own batches.
        found = torch.zeros((len(batches), 32), dtype=torch.int32)
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            digest = hashlib.sha256(batches[number].astype(np.int64).tobytes())
            batch = collate(rows.__getitems__([RowKey(0, int(row)) for row in batches[number]]))
            for name, tensor in batch.items():
                digest.update(f"{name} {_tensor_digest(tensor)}".encode())
            found[number] = torch.tensor(list(digest.digest()))
        found = accelerator.reduce(found.to(accelerator.device), reduction="sum").cpu()
        own = torch.tensor([list(hashlib.sha256(surroundings.encode()).digest())], dtype=torch.int32)
        if not (accelerator.gather(own.to(accelerator.device)).cpu() == own).all():
            return ""
        return hashlib.sha256(bytes([*own[0].tolist(), *found.flatten().tolist()])).hexdigest()[:32]


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


def _read(key: str, few: str, lines: int, accelerator: Accelerator) -> np.ndarray | None:
    """[lines, K] fp32; None where there is none, or none that can be relied on."""
    try:
        path, about = _paths(key)
        if not about.is_file():
            return None
        content: Any = json.loads(about.read_text("utf-8"))
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        usable = found.ndim == 2 and len(found) == lines and found.dtype == np.float32 and found.flags.c_contiguous
        if usable and content["few_rows_sha256"] == few and _sha256(found) == content["sha256"]:
            with suppress(OSError):  # somebody else's cache can be read too
                os.utime(path)
                os.utime(about)
            return found
        problem = "is damaged, or no longer what the model gives"
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, SourceError) as error:
        problem = f"can't be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    say(accelerator, f"note: {key} in the cache's folder outputs {problem}; it is computed anew")
    return None


def _write(key: str, found_RK: np.ndarray, few: str, accelerator: Accelerator) -> None:
    found_RK = np.asanyarray(found_RK, dtype=np.float32, order="C")  # a mapped file stays one
    try:
        path, about = _paths(key)
        _forget_unread(path.parent)
        if found_RK.nbytes > MOST_OF_DISK * (free := shutil.disk_usage(path.parent).free):
            gib = (found_RK.nbytes / 2**30, free / 2**30)
            raise SourceError(f"{gib[0]:,.2f} GiB are much for a cache on a disk with {gib[1]:,.1f} GiB left")
        with whole_file(path) as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(found_RK))
            for piece in _pieces(found_RK):
                file.write(piece.data)
        # Last: without it nothing is read. The hash is of what was to be written, whoever else writes there.
        write_json(about, {"sha256": _sha256(found_RK), "few_rows_sha256": few})
    except (OSError, SourceError) as error:
        say(accelerator, f"note: the next run computes this again, because it can't be kept: {error}")


def _forget_unread(folder: Path) -> None:
    """Delete this module's own files that are old, and nothing else; not through a link, which leads elsewhere."""
    for path in [] if folder.is_symlink() else folder.iterdir():
        if _OWN_FILE.fullmatch(path.name):
            with suppress(OSError):  # gone by now, or somebody else's
                if time.time() - path.lstat().st_mtime > UNREAD_S:
                    path.unlink()


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(array):
        digest.update(piece.data)
    return digest.hexdigest()


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Its lines in order, some at a time; pages of a mapped file are given back behind them."""
    step = max(1, PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
        forget_pages(array)


def _machine(device: torch.device, model: torch.nn.Module) -> dict[str, Any]:
    """What rounds otherwise on another machine, or on this one with other software."""
    from finetune.hardware import describe
    from finetune.record import versions

    described = {name: value for name, value in describe(1, torch.get_num_threads()).items() if name != "memory_gb"}
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return {
        "device": device.type,
        "hardware": described,
        "versions": versions() | {package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""  # of the recipe or of this toolkit, whose sources are hashed


def _model_digest(model: torch.nn.Module, known: dict[Any, str]) -> str:
    """Hash of weights, structure and configuration; "" where a weight is of a kind that can't be hashed here.

    Args:
        known: hashes of tensors by where they are, added to: tied ones, and those of a part, are hashed once.
    """
    digest = hashlib.sha256(f"{type(model).__module__}.{model!r}".encode())
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {"config": repr(config)}
    named = {name: value for name, value in settings.items() if not str(name).endswith("name_or_path")}
    digest.update(json.dumps(named, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            return ""
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in known:
            known[place] = _tensor_digest(tensor)
        digest.update(f"{name} {known[place]}".encode())
    return digest.hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> str:
    # Strides too: channels last is computed by other kernels.
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code() -> str:
    """Hash of this toolkit's own sources: what other code computed is not taken for this code's."""
    digest = hashlib.sha256()
    for path in sorted(Path(finetune.__file__).parent.rglob("*.py")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
