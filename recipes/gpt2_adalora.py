"""Causal language modelling with AdaLoRA: gpt2_clm with 16 ranks a layer, of which 8 on average are left at the end.

    accelerate launch finetune/run.py --recipe gpt2_adalora

Time      8 min 30 s on one core (bf16)
Expected  test perplexity 26.5 to 20.8 (seed 0); the run ends with a table of the ranks by layer. The rate was taken on
          validation: perplexity 18.2 with 1e-2, 21.7 with 2e-3, too little for the 34 updates of the default
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = AdaLoRA(target_r=8, init_r=16)
    c.train.lr = 1e-2
    return c
