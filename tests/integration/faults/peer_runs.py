"""The same fine-tuning by HF Trainer and by plain Accelerate, with their own checkpoints, as their documents do it.

    forks(...).start(["trainer", FOLDER, REVIEWS, UPDATES], ..., module="tests.integration.faults.peer_runs")

A run saves after every update, goes on from the newest checkpoint that it finds, and leaves final.safetensors.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

BATCH = 8
RATE = 1e-3
SEED = 0


def main(arguments: Sequence[str]) -> int:
    """PEER FOLDER REVIEWS UPDATES [nodropout] [keep]: keep all checkpoints."""
    peer, folder, reviews, updates, *options = arguments
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    run = {"trainer": run_trainer, "accelerate": run_accelerate}[peer]
    run(Path(folder), Path(reviews), int(updates), "nodropout" not in options, "keep" in options)
    return 0


def _model(dropout: bool) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    rate = 0.1 if dropout else 0.0
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        _files(), num_labels=2, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_dropout=rate, target_modules=["query", "value"])
    return get_peft_model(model, lora)


def _files() -> Path:
    """The encoder of bert_cls."""
    from finetune.data.sources import resolve_model
    from finetune.recipe import load_recipe

    settings: Any = load_recipe("bert_cls").recipe.model
    return resolve_model(settings.name, None).path


def _rows(reviews: Path) -> tuple[Any, list[dict[str, Any]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_files())
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    return tokenizer, [
        {**tokenizer(row["text"], truncation=True, max_length=32), "labels": names.index(row["label"])} for row in rows
    ]


def _leave(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad},
        folder / "final.safetensors",
    )


def run_trainer(folder: Path, reviews: Path, updates: int, dropout: bool, keep: bool) -> None:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    tokenizer, rows = _rows(reviews)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=updates, per_device_train_batch_size=BATCH // world, learning_rate=RATE,
        save_strategy="steps", save_steps=1, save_total_limit=None if keep else 2, logging_steps=1, report_to=[],
        use_cpu=True, seed=SEED, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=_model(dropout), args=settings, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    if trainer.is_world_process_zero():
        _leave(trainer.accelerator.unwrap_model(trainer.model), folder)
    trainer.accelerator.end_training()


def run_accelerate(folder: Path, reviews: Path, updates: int, dropout: bool, keep: bool) -> None:
    """As in examples/by_feature/checkpointing.py: a folder a step, skip_first_batches; the sampler that they advise."""
    import shutil

    from accelerate import Accelerator, skip_first_batches
    from accelerate.utils import DataLoaderConfiguration, set_seed
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

    tokenizer, rows = _rows(reviews)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    world = accelerator.num_processes
    set_seed(SEED)
    model = _model(dropout)
    collate: Any = DataCollatorWithPadding(tokenizer)
    loader: Any = DataLoader(rows, shuffle=True, batch_size=BATCH // world, collate_fn=collate)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE)
    # A prepared scheduler steps once for each process.
    schedule = get_linear_schedule_with_warmup(optimizer, 0, updates * world)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    done = 0
    saved = sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if saved:
        accelerator.load_state(str(saved[-1]))
        done = int(saved[-1].name.removeprefix("step_"))
    while done < updates:
        epoch, skip = divmod(done, len(loader))
        loader.set_epoch(epoch)
        for batch in skip_first_batches(loader, skip) if skip else loader:
            model.train()
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            accelerator.save_state(str(folder / f"step_{done}"))
            if accelerator.is_main_process and not keep and done > 2:
                shutil.rmtree(folder / f"step_{done - 2}", ignore_errors=True)
            if done == updates:
                break
    if accelerator.is_main_process:
        _leave(accelerator.unwrap_model(model), folder)
    del model
    accelerator.end_training()
