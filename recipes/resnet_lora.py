"""Image classification with LoRA: resnet_img with rank 4 beside all convolutions, and BatchNorm trained along.

    accelerate launch finetune/run.py --recipe resnet_lora

Saved     BatchNorm's weights and statistics are in adapter/ together with the new head
Expected  not measured yet over seeds
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("resnet_img").config()
    c.adapter = LoRA(rank=4, alpha=8, train_modules=["normalization"])
    c.train.lr = 5e-3
    return c
