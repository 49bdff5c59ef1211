"""A small GPT-2 from random weights, character by character: what a text alone teaches, without any transfer.

    accelerate launch finetune/run.py --recipe gpt2_scratch
    accelerate launch finetune/run.py --recipe gpt2_scratch --data input.txt --set model.byte_pairs=2000

Model     GPT-2's architecture with nanoGPT's published settings for a CPU: 4 layers, 4 heads, 128 wide, 64 characters;
          model.byte_pairs: so many byte pairs (BPE) learnt from the training text in place of its characters
Data      $FINETUNE_DATA/tinyshakespeare/input.txt where it is set and exists, else grimm_tales; or your own with --data
Time      3 min 10 s on 1 CPU core (fp32, 1.3 GB of memory), of which training 2 min 47 s
Expected  test loss 1.90 ± 0.01 on tinyshakespeare's last tenth (seeds 0 to 2); nanoGPT's page says 1.88.
          Grimm's tales: test perplexity 4.83, 4.85, 4.85 a character (2.232, 2.237, 2.238 bits a byte)
"""

import os
from pathlib import Path
from typing import Literal

from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from finetune.config import ModelSettings, TrainSettings
from finetune.data.blocks import RandomBlocks, pad_blocks
from finetune.data.byte_pairs import learnt_tokenizer
from finetune.data.loader import load_data
from finetune.evaluation.language import LanguageModelJudge
from finetune.language_modeling import (
    before_training,
    document_notes,
    losses_by_position,
    pack_splits,
    probe_logits,
    sampler,
    save_language_model,
)  # fmt: skip
from finetune.language_settings import LanguageModelObjective, PlainTextData
from finetune.models import random_weights, set_dropout
from finetune.objectives import next_token_count, token_losses
from finetune.randomness import seed_torch
from finetune.recipe import Recipe
from finetune.task import Rows, Task

SHAKESPEARE = Path(os.environ.get("FINETUNE_DATA", "")) / "tinyshakespeare" / "input.txt"


class ScratchModel(ModelSettings):
    name: Literal["gpt2"] = "gpt2"
    revision: None = None
    layers: int = 4
    heads: int = 4
    width: int = 128
    byte_pairs: int | None = None
    """Tokens of a byte-pair encoding (BPE) learnt from the training text; `none` takes its characters."""


def config() -> Recipe:
    data = PlainTextData(source="grimm_tales", block_tokens=64, pack_across_documents=True)
    if SHAKESPEARE.is_file():
        data.source, data.test_share, data.valid_share = str(SHAKESPEARE), 0.1, 0.01  # test is nanoGPT's val.bin
    return Recipe(
        model=ScratchModel(dropout=0.0),
        data=data,
        objective=LanguageModelObjective(prompts=["The king said", "What is"], sample_tokens=300),
        train=TrainSettings(
            epochs=1000, max_updates=2000, batch_size=12, lr=1e-3, lr_schedule="cosine", lr_end=0.1,
            lr_warmup_updates=100, adam_beta2=0.99, weight_decay=0.1, precision="fp32", eval_every_updates=500,
        ),
        build=build,
    )  # fmt: skip


def build(recipe: Recipe) -> Task:
    data = load_data(recipe.data, {"text": recipe.data.text})
    tokenizer = learnt_tokenizer(data.splits["train"]["text"], recipe.model.byte_pairs)
    blocks, text_bytes = pack_splits(data, tokenizer, recipe.data.block_tokens, recipe.data.pack_across_documents)
    end, width, measured = tokenizer.eos_token_id, recipe.data.block_tokens, recipe.objective.baselines
    settings = GPT2Config(
        vocab_size=len(tokenizer), n_positions=width, n_layer=recipe.model.layers, n_head=recipe.model.heads,
        n_embd=recipe.model.width, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    if recipe.model.dropout is not None:
        set_dropout(settings, recipe.model.dropout, recipe.model.name)
    seed_torch(recipe.train.seed, "weights")
    model = GPT2LMHeadModel(settings)
    outputs = losses_by_position(token_losses, width)
    # Blocks from anywhere in the text, as nanoGPT draws them; valid and test are read once from end to end.
    rows: dict[str, Rows] = {**blocks, "train": RandomBlocks(blocks["train"], recipe.train.seed)}

    return Task(
        kind="text-generation",
        data=data,
        files=random_weights(settings, recipe.train.seed),
        model=model,
        rows=rows,
        collate=pad_blocks,
        loss_sum=lambda model, batch: token_losses(model, batch["input_ids"], batch["targets"]).sum(),
        count=lambda batch: next_token_count(batch["targets"]),
        logits=probe_logits,
        outputs=outputs,
        judge=LanguageModelJudge(blocks, text_bytes, recipe.train.seed),
        baselines=before_training("random weights", model, blocks["test"], outputs) if measured else None,
        samples=sampler(tokenizer, recipe.objective.prompts, recipe.objective.sample_tokens, recipe.train.seed),
        save=save_language_model(tokenizer),
        load=AutoModelForCausalLM.from_pretrained,
        notes=document_notes(blocks),
    )
