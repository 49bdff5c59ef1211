"""bert_cls from random weights: the same architecture, tokenizer and rows, to see what the pretrained ones bring.

finetune run recipes/tables/scratch_cls.py --set train.max_updates=60
"""

import dataclasses

from transformers import AutoModelForSequenceClassification

from finetune.models import random_weights
from finetune.randomness import seed_torch
from finetune.recipe import Recipe, base
from finetune.task import Task


def config() -> Recipe:
    c = base("bert_cls").config()
    c.build = build
    return c


def build(recipe: Recipe) -> Task:
    task = base("bert_cls").build(recipe)
    seed_torch(recipe.train.seed, "scratch")
    random = AutoModelForSequenceClassification.from_config(task.model.config)
    task.model.load_state_dict(random.state_dict())
    return dataclasses.replace(task, files=random_weights(task.model.config, recipe.train.seed))
