"""Text classification with LoRA: bert_cls with rank 8 beside all linear layers of the encoder.

    accelerate launch finetune/run.py --recipe bert_lora
    accelerate launch finetune/run.py --recipe bert_lora --set adapter.rank=16 --set adapter.dora=true

Trains    338,690 of 23,052,676 parameters (a head of two classes included)
Time      3 min 28 s on two cores (bf16), of which training 2 min 35 s; 5 to 6 min on one; 2.5 GB
Expected  test accuracy 0.849 ± 0.004 (seeds 0 to 2: 0.853, 0.846, 0.849); bert_cls, everything trained, 0.852. The
          learning rate is ten times that of bert_cls, as is usual, and not tuned
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = LoRA(rank=8, alpha=16)
    c.train.lr = 1e-3
    return c
