"""Causal language modelling with AdaLoRA: gpt2_clm with 16 ranks a layer, of which 8 on average are left at the end.

    accelerate launch finetune/run.py --recipe gpt2_adalora

Expected  not measured yet, and the learning rate is not tuned; the run ends with a table of the ranks by layer
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = AdaLoRA(target_r=8, init_r=16)
    c.train.lr = 2e-3
    return c
