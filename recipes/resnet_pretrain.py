"""Pretrains the small ResNet that comes along, on letters rendered from matplotlib's fonts.

    accelerate launch finetune/run.py --recipe resnet_pretrain

Model     ResNet-20 as a plain ResNetForImageClassification: 7x7 stem and pooling, input enlarged to 64 x 64
Data      a-z and A-Z (no digits) in 18 fonts, distorted anew each time; 2 other fonts for valid, 2 for test
Time      4 min 24 s on two CPU cores, 7 min on one; 1.1 MB of weights, the same bits again with --set train.threads=1
Expected  test accuracy 0.866 ± 0.006 on letters in fonts not trained on (seeds 0 to 2: 0.873, 0.863, 0.863)
Result    what `--set model.name=builtin:letters_resnet` loads, and resnet_img by default
"""

import numpy as np
from datasets import Dataset
from transformers import AutoModelForImageClassification, ConvNextImageProcessor, ResNetConfig

from finetune.config import ClassificationObjective, DataSettings, ModelSettings, TrainSettings
from finetune.data.letters import FONTS, LETTERS, LetterRows, letters_sha256, render
from finetune.data.loader import LoadedData
from finetune.errors import ConfigError
from finetune.evaluation.judge import ClassificationJudge
from finetune.image_classification import normalised, save_image_model
from finetune.models import random_weights
from finetune.objectives import cross_entropy_sum, target_count
from finetune.randomness import seed_torch
from finetune.recipe import Recipe
from finetune.task import Task
from finetune.text_classification import label_maps

SOURCE = "letters"


class SmallResNet(ModelSettings):
    width: int = 16
    blocks: int = 3
    side: int = 64


def config() -> Recipe:
    return Recipe(
        model=SmallResNet(name="resnet"),
        data=DataSettings(source=SOURCE),
        objective=ClassificationObjective(label_smoothing=0.1, baselines=False),
        train=TrainSettings(
            epochs=10_000, max_updates=2000, batch_size=128, lr=4e-3, lr_schedule="cosine", lr_warmup_updates=200,
            weight_decay=0.05, precision="fp32", eval_every_updates=500,
        ),
        build=build,
    )  # fmt: skip


def build(recipe: Recipe) -> Task:
    for key, value in recipe.data.model_dump().items():
        if value != getattr(config().data, key):
            raise ConfigError(f"data.{key}={value} is ignored: this recipe renders its own letters.", "Leave it out.")
    ignored = {"model": ("name", "revision"), "objective": ("baselines", "class_weights", "best_metric")}
    for section, key in ((section, key) for section, keys in ignored.items() for key in keys):
        if getattr(getattr(recipe, section), key) != getattr(getattr(config(), section), key):
            raise ConfigError(f"{section}.{key} is ignored by this recipe.", "Leave it out.")
    rows, splits, seed = {}, {}, recipe.train.seed
    for split in FONTS:
        images, labels, ids = render(split)
        varied = split == "train"
        if not varied:  # each letter in eight distortions
            ids = [f"{letter}/{copy}" for letter in ids for copy in range(8)]
            images, labels = np.repeat(images, 8, 0), np.repeat(labels, 8)
        rows[split] = LetterRows(images, labels, recipe.model.side, seed, varied)
        splits[split] = Dataset.from_dict({"id": ids, "label": labels})
    width = recipe.model.width
    settings = ResNetConfig(
        embedding_size=width, hidden_sizes=[width, 2 * width, 4 * width], depths=[recipe.model.blocks] * 3,
        layer_type="basic", **label_maps(tuple(LETTERS)),
    )  # fmt: skip
    processor = ConvNextImageProcessor(
        size={"shortest_edge": recipe.model.side}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    seed_torch(seed, "weights")

    def logits_BC(model, batch):
        return model(pixel_values=batch["pixel_values"]).logits

    def loss_sum(model, batch):
        return cross_entropy_sum(logits_BC(model, batch), batch["labels"], None, recipe.objective.label_smoothing)

    return Task(
        kind="image-classification",
        data=LoadedData(SOURCE, None, splits, tuple(LETTERS), letters_sha256(), ()),
        files=random_weights(settings, seed),
        model=AutoModelForImageClassification.from_config(settings),
        rows=rows,
        collate=normalised(processor),
        loss_sum=loss_sum,
        count=lambda batch: target_count(batch["labels"]),
        outputs=lambda model, batch: logits_BC(model, batch).float().softmax(-1),
        logits=logits_BC,
        judge=ClassificationJudge({name: some.labels for name, some in rows.items()}, tuple(LETTERS), seed),
        save=save_image_model(processor),
        load=AutoModelForImageClassification.from_pretrained,
    )
