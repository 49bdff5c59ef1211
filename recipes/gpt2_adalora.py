"""Causal language modelling with AdaLoRA: gpt2_clm with 16 ranks a layer, of which 8 on average are left at the end.

    accelerate launch finetune/run.py --recipe gpt2_adalora

Time      4 min 19 s on two cores (bf16), 7 min on one; of that training 2 and 3 min
Expected  test perplexity 26.8 to 20.9 ± 0.1 (seeds 0 to 2: 20.8, 21.0, 20.8), 22.2 ± 0.6 % lower; the run ends with a
          table of the ranks by layer. The rate was taken on validation over 2e-3, too little for so few updates
"""

from finetune.adapters import AdaLoRA
from finetune.recipe import Recipe, base


def config() -> Recipe:
    c = base("gpt2_clm").config()
    c.adapter = AdaLoRA(target_r=8, init_r=16)
    c.train.lr = 1e-2
    return c
