"""Causal language modelling with LoRA: gpt2_clm with rank 16 beside all linear layers.

    accelerate launch finetune/run.py --recipe gpt2_lora
    accelerate launch finetune/run.py --recipe gpt2_lora --data my_books/ --set adapter.rank=8

Trains    4,884,480 of 139,399,488 parameters
Expected  not measured yet in a whole run. The rate was chosen on validation, after 12 updates of 2 rows: perplexity
          16.2 with 1e-3, 16.6 with 5e-4 (seed 0)
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = LoRA(rank=16, alpha=32)
    c.train.lr = 1e-3
    return c
