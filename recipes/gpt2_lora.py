"""Causal language modelling with LoRA: gpt2_clm with rank 16 beside all linear layers.

    accelerate launch finetune/run.py --recipe gpt2_lora
    accelerate launch finetune/run.py --recipe gpt2_lora --data my_books/ --set adapter.rank=8

Expected  not measured yet
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = LoRA(rank=16, alpha=32)
    c.train.lr = 1e-3
    return c
