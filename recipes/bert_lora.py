"""Text classification with LoRA: bert_cls with rank 8 beside all linear layers of the encoder.

    accelerate launch finetune/run.py --recipe bert_lora
    accelerate launch finetune/run.py --recipe bert_lora --set adapter.rank=16 --set adapter.dora=true

Trains    338,690 of 23,052,676 parameters (a head of two classes included)
Expected  not measured yet over seeds; the learning rate is ten times that of bert_cls, as is usual, and not tuned
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = LoRA(rank=8, alpha=16)
    c.train.lr = 1e-3
    return c
