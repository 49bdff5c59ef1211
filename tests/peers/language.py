"""transformers' run_clm.py with PEFT: texts joined and cut into blocks, Trainer with the default collator."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, default_data_collator

from tests.peers.clock import Clock
from tests.peers.text import UpdateTimes, arguments, counted, read

BLOCK_TOKENS = 256


def train(request: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    texts = [row["text"] for row in read(Path(request["data"]) / "train.jsonl")]
    ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
    blocks = [ids[first : first + BLOCK_TOKENS] for first in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)]
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    )  # fmt: skip
    clock, best = Clock(request), request["side"] == "best"
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=arguments(request, folder, best),
            train_dataset=rows,
            data_collator=counted(default_data_collator, clock),
            processing_class=tokenizer,
            callbacks=[UpdateTimes(clock)],
        ).train()
    return clock.found(request["best_precision"] if best else "fp32")
