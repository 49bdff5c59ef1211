"""Saving what was trained, and proof that what was saved is what was trained."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from finetune.data.batching import RowKey
from finetune.errors import CheckpointError, TrainingError
from finetune.evaluation.predict import to_device
from finetune.files import sha256_file

if TYPE_CHECKING:
    from finetune.adapters import Adapter
    from finetune.task import Batch, Task
    from finetune.trainer import Trainer

PROBE_ROWS = 32
# Of the largest logit: merging adds the update to weights of other sizes, which rounds.
MERGE_TOLERANCE = 1e-5
BASE = "base"


def export(task: Task, trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Save `model/`, which plain transformers loads, and, for an adapter of PEFT's, `adapter/`, which plain peft loads.

    Both are loaded back from disk, and their fp32 logits on the first validation rows compared with the live model's.
    Where an update is merged, or ranks are left out, and they differ by more than the tolerance, that is widened to
    four times what the live model's own fp32 logits differ from those that it computes in fp64.
    An adapter names its base as a hub id and revision; a base of another source is kept in `base/` beside it, so that
    it moves with the run. Every process calls it; only the main one writes.

    Returns:
        export_check and adapter_summary as run.json holds them.

    Raises:
        TrainingError: training ended without having done what the adapter is for.
        CheckpointError: the disk is full or read-only.
    """
    from finetune.launch import shared_text

    def saved() -> str:
        try:
            return json.dumps(_save_and_check(task, trainer, folder))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"The model can't be written to {folder / 'model'}: {error}",
                f"Make room, then: --resume {folder}. Nothing is trained twice.",
            ) from None

    summary = trainer.adapter.summary(trainer.model)
    return {"export_check": json.loads(shared_text(trainer.accelerator, saved)), "adapter_summary": summary}


def load_export(task: Task, adapter: Adapter, folder: Path) -> torch.nn.Module:
    """What a run exported, loaded from disk: model/, or adapter/ on its base where nothing can be merged."""
    if adapter.mergeable:
        return task.load(folder / "model")
    base = folder / BASE
    return adapter.load(task.load(base if base.is_dir() else task.files.path), folder / "adapter").eval()


def refuse_unequal(check: dict[str, Any]) -> None:
    """Fail the run whose saved model is not the trained one.

    Raises:
        TrainingError: names what was loaded back and the difference.
    """
    for name, part in check["parts"].items():
        # Written so that a difference that is no number fails too.
        if not part["difference"] <= part["tolerance"]:
            raise TrainingError(
                f"What was saved in {name}/ is not what was trained: loaded back, its logits differ by "
                f"{part['difference']:.1e} ({part['measure']}), above {part['tolerance']:.0e}.",
                "The last checkpoint still holds the trained weights. Please report this with run.json.",
            )


def export_lines(check: dict[str, Any]) -> list[str]:
    """What the check found, to print."""
    return [
        f"{name}/ loaded back: logits differ by at most {part['difference']:.1e} ({part['measure']}; "
        f"tolerance {part['tolerance']:.0e}{_said(part)}), {part['flips']} of {check['rows']} predictions change"
        for name, part in check["parts"].items()
    ]


def _said(part: dict[str, Any]) -> str:
    return f", four times the model's own rounding in fp32, {part['rounding']:.1e}" if "rounding" in part else ""


def probe_batch(task: Task) -> tuple[Batch, int]:
    """The fixed rows that saved models are compared on: the first validation rows as one batch, and their number."""
    keys = [RowKey(0, index) for index in range(min(PROBE_ROWS, len(task.rows["valid"])))]
    return task.collate(task.rows["valid"].__getitems__(keys)), len(keys)


def _save_and_check(task: Task, trainer: Trainer, folder: Path) -> dict[str, Any]:
    adapter, model, files = trainer.adapter, trainer.model, task.files
    batch, rows = probe_batch(task)
    batch = to_device(batch, trainer.accelerator.device)

    def logits(some: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return task.logits(some.to(trainer.accelerator.device).eval(), batch).float().cpu()

    def exact(some: torch.nn.Module) -> torch.Tensor:
        wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
        with torch.inference_mode():
            return task.logits(some.double().cpu().eval(), to_device(wide, torch.device("cpu"))).double()

    parts: dict[str, dict[str, Any]] = {}
    live = logits(model)
    # The hub's model lacks modules that are written here once and for all, such as a pooling layer.
    from_hub = files.revision is not None and not task.fixed_modules and not adapter.keeps_base
    name, revision = (files.name, files.revision) if from_hub else (f"../{BASE}", None)
    if adapter.save(model, folder / "adapter", name, revision):
        task.save(adapter.base(model), folder / BASE)
        loaded = adapter.load(task.load(folder / BASE), folder / "adapter")
        parts["adapter"] = difference(live, logits(loaded), adapter.tolerance())
        if 0.0 < adapter.tolerance() < parts["adapter"]["difference"]:
            parts["adapter"] |= _own_rounding(live, exact(copy.deepcopy(model)), adapter.tolerance())
        del loaded  # the next one is loaded below: two at once would be this run's peak of memory
    if adapter.mergeable:
        parts["model"] = _save_plain(
            task, adapter, model, folder, lambda some: difference(live, logits(some), MERGE_TOLERANCE)
        )
        if "adapter" in parts and parts["model"]["difference"] > MERGE_TOLERANCE:
            again = adapter.load(task.load(folder / BASE), folder / "adapter")  # `model` is taken apart by now
            parts["model"] |= _own_rounding(live, exact(again), MERGE_TOLERANCE)
    if from_hub:
        shutil.rmtree(folder / BASE, ignore_errors=True)
    saved = folder / ("model" if adapter.mergeable else "adapter")
    files_sha256 = {path.name: sha256_file(path) for path in sorted(saved.iterdir()) if path.is_file()}
    return {"rows": rows, "parts": parts, "sha256": files_sha256}


def _save_plain(
    task: Task,
    adapter: Adapter,
    model: torch.nn.Module,
    folder: Path,
    compare: Callable[[torch.nn.Module], dict[str, Any]],
) -> dict[str, Any]:
    """model/, and what comes of comparing it, loaded back. Under its own name only when it is whole: half a model/
    would look like one."""
    written = folder / ".writing-model"
    shutil.rmtree(written, ignore_errors=True)
    try:
        task.save(adapter.plain(model), written)
        found = compare(task.load(written))
        shutil.rmtree(folder / "model", ignore_errors=True)  # of an attempt that failed later than here
        written.rename(folder / "model")
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return found


def _own_rounding(live: torch.Tensor, exact: torch.Tensor, tolerance: float) -> dict[str, float]:
    """A tolerance for models that round by more than the usual one, and what they round by.

    SmolLM2 carries numbers of 24,000 from layer to layer, so its fp32 logits are not those of fp64 to 5 digits, merged
    or not; and no two ways of computing them agree better than that. Each way rounds anew, hence the factor.
    """
    rounding = float((live.double() - exact).abs().max()) / max(float(exact.abs().max()), 1e-30)
    return {"rounding": rounding, "tolerance": max(tolerance, 4 * rounding)}


def difference(live: torch.Tensor, loaded: torch.Tensor, tolerance: float) -> dict[str, Any]:
    """How far the logits are apart, and how many rows' predictions change; [rows, ..., classes] each."""
    found = float((loaded - live).abs().max()) / max(float(live.abs().max()), 1e-30)
    flips = (live.argmax(-1) != loaded.argmax(-1)).flatten(1).any(1) if live.ndim > 2 else None
    if flips is None:
        flips = live.argmax(-1) != loaded.argmax(-1)
    return {
        "difference": found,
        "measure": "relative to the largest",
        "tolerance": tolerance,
        "flips": int(flips.sum()),
    }
