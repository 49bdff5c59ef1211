"""`finetune merge`: a finished run's model, adapter merged, in another precision, and proof of what that costs."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from finetune.data.sources import checked_weights
from finetune.errors import ConfigError, TrainingError
from finetune.evaluation.predict import to_device
from finetune.export import BASE, difference, probe_batch
from finetune.files import write_json
from finetune.inference.exported import check_files, own_accelerator
from finetune.options import recorded_recipe
from finetune.run_folder import read_record

if TYPE_CHECKING:
    from finetune.task import Batch, Task

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A rounded model may differ by so much more than its base does: each of the two rounds anew. As in `export`.
FACTOR = 4


def merge(run: str, dtype: str, out: str | None) -> int:
    """Write a run's full model in a precision, and compare it with the model that was trained; the exit status is 0.

    The reference is the adapter on its pretrained base in fp32, loaded as plain `peft` loads it (for a run without an
    adapter: its model/). The written model is loaded back as plain `transformers` loads it; its tensors must be the
    merged ones rounded once, to the bit, and its logits on the run's first validation rows are compared.

    The tolerance is the precision's own: four times what the pretrained base, without any fine-tuning, differs from
    itself in fp32 on the same rows when it alone is rounded. For float32 it is that of the run's own export.

    Raises:
        ConfigError: no finished run there, nothing that could be merged, or `out` is taken.
        TrainingError: above the tolerance; no folder is left.
    """
    folder, record = Path(run), read_record(Path(run))
    if record["status"] != "completed":
        raise ConfigError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    target = Path(out) if out is not None else folder / f"model-{dtype}"
    _check_target(target)
    adapted = (folder / "adapter").is_dir()
    parts = record.get("export_check", {}).get("parts", {})
    if "model" not in parts and not adapted:
        raise ConfigError(f"{folder / 'run.json'} does not say what the run exported.", "Start a new run.")
    if "model" not in parts:
        raise ConfigError(
            f"adapter={record['config']['adapter']['name']} can't be merged: it adds tokens and changes no weights.",
            f"Use {folder / 'adapter'} on its base.",
        )
    if not adapted and not (folder / "model").is_dir():
        raise ConfigError(f"{folder} has neither adapter/ nor model/.", "The folder is not whole; copy it again.")
    loaded = recorded_recipe(record)
    task = loaded.build()
    _refuse_other(task, record, folder)
    if not adapted:
        print(f"{run} has no adapter, so nothing is merged: its model/ is written in {dtype}.")

    batch, rows = probe_batch(task)
    rounding = _rounding(task, batch, DTYPES[dtype])
    try:
        if adapted:
            # Absent where it is the pretrained model as the hub has it.
            base = task.load(folder / BASE) if (folder / BASE).is_dir() else copy.deepcopy(task.model)
            live = loaded.recipe.adapter.load(base, folder / "adapter")
            reference = _logits(task, live, batch)
            model = loaded.recipe.adapter.plain(live)
        else:
            model = task.load(folder / "model")
            reference = _logits(task, model, batch)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{folder / ('adapter' if adapted else 'model')} can't be loaded: {reason}",
            "The folder is not whole; copy it again from where the run was made.",
        ) from None
    # That of the run's own export is wider than usual where the model's fp32 itself is coarse.
    tolerance = max(float(parts["model"]["tolerance"]), FACTOR * rounding)
    part = {**_write(task, model, DTYPES[dtype], target, batch, reference, tolerance), "rounding": rounding}
    part |= {"dtype": dtype, "rows": rows, "folder": str(target)}
    # Read anew: another merge may have been recorded meanwhile.
    record = read_record(folder)
    others = [done for done in record.get("merged", []) if done["folder"] != str(target)]
    write_json(folder / "run.json", {**record, "merged": [*others, part]})
    print(
        f"{target}/  {dtype}, loaded back: logits differ from fp32 by at most {part['difference']:.1e} "
        f"({part['measure']}; tolerance {tolerance:.1e}, of which the base alone, rounded, needs {rounding:.1e}), "
        f"{part['flips']} of {rows} predictions change"
    )
    return 0


def _check_target(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists already.", "Name another folder with --out; nothing is overwritten.")
    if not target.parent.is_dir():
        raise ConfigError(f"--out {target}: the folder {target.parent} does not exist.", f"mkdir -p {target.parent}")


def _refuse_other(task: Task, record: dict[str, Any], folder: Path) -> None:
    """Refuse what is no longer what the run had: a merge onto another base would be another model."""
    if task.files.sha256 != record["model"]["sha256"]:
        raise ConfigError(
            f"{task.files.name} has other weights than when {folder} was trained.", "Put back those that it began with."
        )
    if task.data.sha256 != record["data"]["sha256"]:
        raise ConfigError(
            f"{task.data.name} has changed since {folder} was trained, and its validation rows are what the merged "
            "model is compared on.",
            "Put the data back as they were.",
        )
    if not (folder / "adapter").is_dir():
        check_files(folder, record)
    own = folder / (BASE if (folder / "adapter").is_dir() else "model")
    if own.is_dir():
        checked_weights(own, str(own))


def _rounding(task: Task, batch: Batch, dtype: torch.dtype) -> float:
    """What the pretrained model's logits lose in a precision, relative to the largest; nothing in fp32.

    Raises:
        ConfigError: they are no numbers there: the model's own values are too large for it.
    """
    if dtype == torch.float32:
        return 0.0
    before = _logits(task, task.model, batch)
    after = _logits(task, _rounded(copy.deepcopy(task.model), dtype), batch)
    if not bool(torch.isfinite(after).all()):
        raise ConfigError(
            f"{task.files.name.partition('#')[0]} can't compute in {str(dtype).removeprefix('torch.')}: the numbers "
            "inside it are too large, also without fine-tuning.",
            "Use --dtype bfloat16, which has the range of float32.",
        )
    return float(difference(before, after, 0.0)["difference"])


def _write(
    task: Task,
    model: torch.nn.Module,
    dtype: torch.dtype,
    target: Path,
    batch: Batch,
    reference: torch.Tensor,
    tolerance: float,
) -> dict[str, Any]:
    """Save, load back and compare; `target` appears whole and within the tolerance, or not at all."""
    written = target.with_name(f".writing-{target.name}")
    shutil.rmtree(written, ignore_errors=True)
    try:
        expected = _rounded(model, dtype)
        task.save(expected, written)
        back = task.load(written)
        found = back.state_dict()
        for name, value in expected.state_dict().items():
            if found[name].dtype != value.dtype or not torch.equal(found[name].cpu(), value.cpu()):
                raise TrainingError(f"{name}, loaded back from {target}, is not what was saved.", "Nothing is kept.")
        part = difference(reference, _logits(task, back, batch), tolerance)
        # Written so that a difference that is no number fails too.
        if not part["difference"] <= tolerance:
            raise TrainingError(
                f"The merged model in {str(dtype).removeprefix('torch.')} is not what was trained: its logits differ "
                f"by {part['difference']:.1e} ({part['measure']}), above {tolerance:.1e}, and {part['flips']} "
                "predictions change.",
                f"Nothing is kept at {target}. Use --dtype float32, or bfloat16 in place of float16.",
            )
        written.rename(target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return part


def _rounded(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model with parameters and saved buffers in a precision, as `from_pretrained` has them: what is not in the
    file (rotary frequencies) stays in fp32, which `model.to` would round too."""
    saved = model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        for name, buffer in model.named_buffers():
            if name in saved and buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
    return model


def _logits(task: Task, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of the probe rows in fp32, computed in the model's own precision on the machine's best device."""
    device = own_accelerator().device
    dtype = next(model.parameters()).dtype
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    with torch.inference_mode():
        return task.logits(model.to(device).eval(), to_device(given, device)).float().cpu()
