"""Text classification with AdaLoRA: bert_cls with 12 ranks a layer, pruned to 8 on average where they matter least.

    accelerate launch finetune/run.py --recipe bert_adalora

Trains    508,094 of 23,222,117 parameters while it prunes; the run ends with a table of the ranks by layer
Time      4 min 27 s on two cores (bf16), of which training 3 min 26 s; 7 min on one; 3.0 GB (bert_lora 2.5)
Expected  test accuracy 0.848 ± 0.003 (seeds 0 to 2: 0.849, 0.850, 0.844); bert_cls, everything trained, 0.852. The
          learning rate is not tuned
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = AdaLoRA(target_r=8, init_r=12)
    c.train.lr = 2e-3
    return c
