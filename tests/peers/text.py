"""transformers' Trainer on texts with labels: everything trained, LoRA of PEFT, or the encoder frozen."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.peers.clock import Clock

# What its documentation names for speed: batches of like length, AdamW in one pass (the default by now), and bf16 where
# the processor has it.
BEST = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}


class UpdateTimes(TrainerCallback):
    """Tells the clock of every update."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.update_done()


def arguments(request: dict[str, Any], folder: str, best: bool) -> TrainingArguments:
    """As shipped, but for what the comparison fixes: rows of an update, their number, the seed, and the CPU."""
    length = (
        {"num_train_epochs": request["epochs"]}
        if request["epochs"]
        else {"max_steps": request["warm_up"] + request["updates"]}
    )
    lr = {"learning_rate": request["lr"]} if "lr" in request else {}
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=request["batch"],
        seed=request["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **length,
        **lr,
        **({**BEST, "bf16": request["best_precision"] == "bf16"} if best else {}),
    )


def counted(collate: Any, clock: Clock) -> Any:
    """A collator that notes what it held."""

    def collated(rows: list[dict[str, Any]]) -> Any:
        clock.batches.append((len(rows), sum(len(row["input_ids"]) for row in rows)))
        return collate(rows)

    return collated


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def train(request: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    splits = {name: read(Path(request["data"]) / f"{name}.jsonl") for name in ("train", "test")}
    labels = sorted({row["label"] for row in splits["train"]})

    def tokenized(split: str) -> Dataset:
        rows = Dataset.from_list(splits[split])
        return rows.map(
            lambda some: {
                **tokenizer(some["text"], truncation=True, max_length=256),
                "labels": [labels.index(label) for label in some["label"]],
            },
            batched=True,
            remove_columns=["text", "label"],
        )

    model = AutoModelForSequenceClassification.from_pretrained(
        request["model"], num_labels=len(labels), dtype=torch.float32
    )
    kind = request["peer"].removeprefix("trainer_")
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(model, config)
    elif kind == "frozen":
        model.base_model.requires_grad_(False)
    clock, best = Clock(request), request["side"] == "best"
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(request, folder, best),
            train_dataset=tokenized("train"),
            data_collator=counted(DataCollatorWithPadding(tokenizer), clock),
            processing_class=tokenizer,
            callbacks=[UpdateTimes(clock)],
        )
        clock.start()
        trainer.train()
        accuracy = None
        if request["epochs"]:
            found = trainer.predict(tokenized("test"))
            accuracy = float((found.predictions.argmax(-1) == found.label_ids).mean())
    return clock.found(request["best_precision"] if best else "fp32", accuracy)
