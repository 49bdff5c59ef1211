"""Causal language modelling with LoRA: gpt2_clm with rank 16 beside all linear layers.

    accelerate launch finetune/run.py --recipe gpt2_lora
    accelerate launch finetune/run.py --recipe gpt2_lora --data my_books/ --set adapter.rank=8

Trains    4,884,480 of 139,399,488 parameters
Time      3 min 11 s on two cores (bf16), 6 min 45 s on one, of which training 2 min 50 s
Expected  test perplexity 26.8 to 20.6 ± 0.2 (seeds 0 to 2: 20.4, 20.8, 20.5), 23.4 ± 0.7 % lower; of one seed 23.8 %
          [22.4, 25.4] over the documents. The rate was taken on validation over 5e-4
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = LoRA(rank=16, alpha=32)
    c.train.lr = 1e-3
    return c
