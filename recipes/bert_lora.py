"""Text classification with LoRA: bert_cls with rank 8 beside all linear layers of the encoder.

    accelerate launch finetune/run.py --recipe bert_lora
    accelerate launch finetune/run.py --recipe bert_lora --set adapter.rank=16 --set adapter.dora=true

Trains   MEASURE of MEASURE parameters
Hardware MEASURE
Time     MEASURE
Expected accuracy MEASURE ± MEASURE (MEASURE seeds); bert_cls, trained in full, MEASURE
"""

from finetune.adapters import LoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("bert_cls").config()
    c.adapter = LoRA(rank=8, alpha=16)
    c.train.lr = 1e-3
    return c
