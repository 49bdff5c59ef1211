"""Causal language modelling with LoRA: gpt2_clm with rank 16 beside all linear layers.

    accelerate launch finetune/run.py --recipe gpt2_lora
    accelerate launch finetune/run.py --recipe gpt2_lora --data my_books/ --set adapter.rank=8

Trains    4,884,480 of 139,399,488 parameters
Time      8 min on one core (bf16), of which training 3 min 33 s
Expected  test perplexity 26.5 to 20.5 (seed 0) and 20.4 (seed 1): 22.7 % [20.9, 24.2] and 23.0 % lower [21.5, 24.3].
          The rate was taken on validation over 5e-4. Blocks of 512 tokens gave 22.7 to 18.8: 17.3 % lower
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = LoRA(rank=16, alpha=32)
    c.train.lr = 1e-3
    return c
