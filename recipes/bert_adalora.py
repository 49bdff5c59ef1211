"""Text classification with AdaLoRA: bert_cls with 12 ranks a layer, pruned to 8 on average where they matter least.

    accelerate launch finetune/run.py --recipe bert_adalora

Trains    508,094 of 23,222,117 parameters while it prunes; the run ends with a table of the ranks by layer
Expected  not measured yet over seeds, and the learning rate is not tuned
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = AdaLoRA(target_r=8, init_r=12)
    c.train.lr = 2e-3
    return c
