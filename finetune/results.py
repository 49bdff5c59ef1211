"""What a finished run leaves: the exported model, its measured results, predictions, card and picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from finetune.errors import CheckpointError
from finetune.evaluation.predict import predict_rows
from finetune.hardware import peak_rss_mb

if TYPE_CHECKING:
    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.task import Task
    from finetune.trainer import Trainer


def export_and_judge(task: Task, trainer: Trainer, folder: Path, baselines: list[Baseline]) -> dict[str, Any]:
    """Save the plain model, load it back from disk, and measure that one, in fp32: the numbers are the export's.

    Every process calls it; only the main one writes.

    Returns:
        metrics, per_class, confusion, baselines, gains and peak_rss_mb as run.json holds them.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    accelerator, judge = trainer.accelerator, task.judge
    if accelerator.is_main_process:
        try:
            task.save(trainer.adapter.plain(trainer.model), folder / "model")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"The model can't be written to {folder / 'model'}: {error}",
                f"Make room, then: --resume {folder}. Nothing is trained twice.",
            ) from None
    accelerator.wait_for_everyone()
    model = task.load(folder / "model").to(accelerator.device)
    tables: dict[str, dict[str, Any]] = {}
    outputs: dict[str, np.ndarray] = {}
    for split in ("valid", "test"):
        outputs[split] = predict_rows(model, task.rows[split], task.collate, task.outputs, accelerator, split)
        for name, table in judge.judge(split, outputs[split]).items():
            tables.setdefault(name, {})[split] = table
    if accelerator.is_main_process:
        _write_predictions(task, outputs["test"], folder / "predictions.parquet")
    return {
        **tables,
        "baselines": {some.name: judge.judge("test", some.probabilities)["metrics"] for some in baselines},
        "baseline_notes": {some.name: some.note for some in baselines if some.note},
        "gains": {some.name: judge.gain("test", outputs["test"], some.probabilities) for some in baselines},
        "peak_rss_mb": peak_rss_mb(),
    }


def write_report(record: dict[str, Any], data: LoadedData, folder: Path) -> None:
    """The model card, its picture, and the table that the run prints at its end."""
    from finetune.report.model_card import write_model_card
    from finetune.report.picture import result_picture
    from finetune.report.summary import summary_table

    if data.card is not None:
        shutil.copyfile(data.card.path, folder / "data_card.md")
    result_picture(record, folder / "result.png")
    write_model_card(folder, record)
    print(summary_table(record))
    print(f"\n{folder}/  model/ (plain transformers), README.md (model card), run.json, predictions.parquet")


def _write_predictions(task: Task, outputs: np.ndarray, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"id": task.data.splits["test"]["id"][:], **task.judge.columns("test", outputs)}
    temporary = path.with_name(f".{path.name}")
    pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)
