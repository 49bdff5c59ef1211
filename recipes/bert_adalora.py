"""Text classification with AdaLoRA: bert_cls with 12 ranks a layer, pruned to 8 on average where they matter least.

    accelerate launch finetune/run.py --recipe bert_adalora

Trains   MEASURE of MEASURE parameters; the run ends with a table of the ranks by layer
Hardware MEASURE
Time     MEASURE
Expected accuracy MEASURE ± MEASURE (MEASURE seeds); bert_lora MEASURE
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = AdaLoRA(target_r=8, init_r=12)
    c.train.lr = 2e-3
    return c
