"""What a finished run leaves: the exported model, its measured results, predictions, card and picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluation.judge import ClassificationJudge
from finetune.evaluation.predict import predict_rows
from finetune.export import export_lines, load_export
from finetune.hardware import peak_rss_mb

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from finetune.adapters import Adapter
    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.task import Task


def judge_export(
    task: Task,
    adapter: Adapter,
    accelerator: Accelerator,
    folder: Path,
    baselines: list[Baseline],
    samples: list[dict[str, Any]],
) -> dict[str, Any]:
    """Load the exported model from disk and measure that one, in fp32: the numbers are the export's.

    Every process calls it; only the main one writes.

    Args:
        samples: what the model wrote before training.

    Returns:
        metrics, per_class, confusion, baselines, gains and peak_rss_mb as run.json holds them.
    """
    judge = task.judge
    model = load_export(task, adapter, folder).to(accelerator.device)
    tables: dict[str, dict[str, Any]] = {}
    outputs: dict[str, np.ndarray] = {}
    for split in ("valid", "test"):
        outputs[split] = predict_rows(model, task.rows[split], task.collate, task.outputs, accelerator, split)
        for name, table in judge.judge(split, outputs[split]).items():
            tables.setdefault(name, {})[split] = table
    if accelerator.is_main_process:
        _write_predictions(task, outputs, "test", folder / "predictions.parquet")
        if isinstance(judge, ClassificationJudge):  # what `finetune calibrate` fits a temperature on
            _write_predictions(task, outputs, "valid", folder / "predictions_valid.parquet")
    return {
        **tables,
        "baselines": {some.name: judge.judge("test", some.outputs)["metrics"] for some in baselines},
        "baseline_notes": {some.name: some.note for some in baselines if some.note},
        "gains": {some.name: judge.gain("test", outputs["test"], some.outputs) for some in baselines},
        **_samples(task, model, samples),
        "peak_rss_mb": peak_rss_mb(),
    }


def _samples(task: Task, model: torch.nn.Module, before: list[dict[str, Any]]) -> dict[str, Any]:
    """What run.json holds of the samples: {"samples": [{"prompt", "before", "after"}]}; nothing without any.

    Answers to held-out prompts also hold what the data answers (`expected`), and `answers` counts how many ended by
    themselves: a model that never stops is useless in a chat, however low its perplexity.
    """
    if task.samples is None or not before:
        return {}
    pairs = list(zip(before, task.samples(model), strict=True))
    found: dict[str, Any] = {
        "samples": [
            {"prompt": a["prompt"], "before": a["text"], "after": b["text"]}
            | ({"expected": a["expected"]} if "expected" in a else {})
            for a, b in pairs
        ]
    }
    if "ended" in before[0]:
        ended = [sum(bool(pair[when]["ended"]) for pair in pairs) for when in (0, 1)]
        found["answers"] = {"count": len(pairs), "ended_before": ended[0], "ended_after": ended[1]}
    return found


def write_report(record: dict[str, Any], data: LoadedData, folder: Path) -> None:
    """The model card, its picture, and the table that the run prints at its end."""
    from finetune.report.model_card import write_model_card
    from finetune.report.picture import result_picture
    from finetune.report.ranks import rank_table
    from finetune.report.summary import summary_table

    if data.card is not None:
        shutil.copyfile(data.card.path, folder / "data_card.md")
    result_picture(record, folder / "result.png")
    write_model_card(folder, record)
    print(summary_table(record))
    if ranks := record.get("adapter_summary", {}).get("ranks"):
        print(f"\nranks that AdaLoRA left\n{rank_table(ranks)}")
    for line in export_lines(record["export_check"]):
        print(line)
    parts = {"model": "model/ (plain transformers), ", "adapter": "adapter/ (plain peft), "}
    present = "".join(text for name, text in parts.items() if (folder / name).is_dir())
    if not (folder / "model").is_dir():
        print("There is no model/: virtual tokens can't be merged. adapter/ goes onto the pretrained model.")
    print(f"\n{folder}/  {present}README.md (model card), run.json, predictions.parquet")


def _write_predictions(task: Task, outputs: dict[str, np.ndarray], split: str, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"id": task.data.splits[split]["id"][:], **task.judge.columns(split, outputs[split])}
    temporary = path.with_name(f".{path.name}")
    pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)
