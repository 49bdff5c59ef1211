"""The rows that both sides of a comparison train on: the first ones of a card, as files that either reads by itself."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.files import write_json

if TYPE_CHECKING:
    import torch

    from finetune.bench.speed.rows import Row

JUDGED_ROWS = 500
FEW = 64
# An epoch of the images: more only cost time to prepare.
DIGITS = 96
BLOCK_TOKENS = 256


def prepare(row: Row, updates: int, folder: Path) -> dict[str, Any]:
    """Write a row's slice, once: {"data": folder, "model": folder} as both sides take it.

    The peers read these files and import nothing of this toolkit, so that what they take is their own.
    """
    done = folder / "slice.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = updates * row.batch
        if row.data == "digits":
            rows = min(rows, DIGITS)
            _digits(rows, folder / "data")
        else:
            rows = _texts(row, rows, folder / "data")
        write_json(done, {"rows": rows})
    content = json.loads(done.read_text("utf-8"))
    return {"data": str(folder / "data"), "model": str(_model(row, folder)), **content}


def _texts(row: Row, rows: int, folder: Path) -> int:
    """train, valid and test.jsonl of a card's first rows; plain texts are taken whole. The number of training rows."""
    from finetune.data.loader import load_data
    from finetune.data.shots import draw_shots
    from finetune.recipe import load_recipe

    recipe = load_recipe(row.recipe).recipe
    plain = not hasattr(recipe.data, "label")
    roles: dict[str, str | None] = {"text": None} if plain else {"text": None, "label": None}
    data = load_data(recipe.data.model_copy(update={"source": row.data}), roles)
    shots: int | None = getattr(recipe.data, "shots", None)
    if shots is not None:  # the same rows for any seed: who is quicker is not up to the draw
        data = draw_shots(data, shots, recipe.train.seed)
        rows = len(data.splits["train"])
    folder.mkdir()
    judged = JUDGED_ROWS if row.epochs else FEW
    known: set[int] = set()
    for name, most in (("train", rows), ("valid", FEW), ("test", judged)):
        split = data.splits[name]
        if plain:
            # Whole tales: as many as hold the rows at about 3 letters a token, a few for the splits that nobody times.
            letters = most * BLOCK_TOKENS * 5 if name == "train" else 4_000
            texts = _up_to(split["text"], letters)
            lines = [{"text": text} for text in texts]
        else:
            labels = split["label"][:]
            known = known or set(labels[:most])
            wanted = [index for index, label in enumerate(labels) if label in known][:most]
            lines = [{"text": split["text"][index], "label": data.labels[labels[index]]} for index in wanted]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, "utf-8")
    return rows


def _up_to(texts: Any, letters: int) -> list[str]:
    found: list[str] = []
    for text in texts:
        found.append(text)
        if sum(map(len, found)) >= letters:
            break
    return found


def _digits(rows: int, folder: Path) -> None:
    """scikit-learn's digits as PNG files in class folders: the first `rows` for training, as even as they come."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    seen: Counter[str] = Counter()
    splits = ["train"] * rows + ["valid"] * FEW + ["test"] * JUDGED_ROWS
    for number, (split, pixels, label) in enumerate(zip(splits, images, labels, strict=False)):
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.reshape(8, 8) * 15.9375).astype("uint8")).convert("RGB").save(
            place / f"{number:04}.png"
        )
        seen[split] += 1
    assert seen["test"], "digits has 1,797 images"


def _model(row: Row, folder: Path) -> Path:
    """The model folder: the recipe's own, or a ResNet-18 with random weights, which takes as long as with any."""
    from finetune.data.sources import resolve_model
    from finetune.recipe import load_recipe

    if row.data != "digits":
        return resolve_model(load_recipe(row.recipe).recipe.model.name, None).path
    place = folder / "resnet18"
    if not (place / "preprocessor_config.json").exists():
        from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

        from finetune.randomness import seed_torch
        from finetune.text_classification import label_maps

        seed_torch(0, "slice")
        # With the names of the classes, so that a run takes the head for its own and both sides begin with it.
        labels = tuple(sorted(path.name for path in (folder / "data" / "train").iterdir()))
        config = ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], **label_maps(labels)
        )  # fmt: skip
        model = ResNetForImageClassification(config)
        processor = ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875)
        _meet_images(model, processor, folder / "data" / "train")
        model.save_pretrained(place)
        processor.save_pretrained(place)
    return place


def _meet_images(model: torch.nn.Module, processor: Any, images: Path) -> None:
    """Give BatchNorm the statistics of these images, as a pretrained network has those of its own.

    A frozen backbone computes with them. Without, random layers one after the other make all images look alike, and a
    row would compare the time of learning with that of learning nothing.
    """
    import torch
    from PIL import Image

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    pictures = [Image.open(path).convert("RGB") for path in sorted(images.rglob("*.png"))]
    pixels_BCHW = processor(images=pictures, return_tensors="pt")["pixel_values"]
    model.train()
    with torch.no_grad():
        for part_BCHW in pixels_BCHW.split(16):
            model(pixel_values=part_BCHW)
    model.eval()
