"""The parts of an image classifier that are the same for every recipe: batches, augmentation, baselines, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import SerializeAsAny

from finetune.data.batching import RowKey
from finetune.data.images import ImageRows, centre
from finetune.errors import ConfigError
from finetune.evaluation.predict import Predict, predict_rows
from finetune.hardware import choose_precision
from finetune.image_settings import Augmentation, ImageData, ImageModelSettings, ImageObjective
from finetune.randomness import fold, numpy_generator
from finetune.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.task import Batch, Collate, Rows


class ImageRecipe(Recipe):
    """A recipe whose sections are those of image classification."""

    model: SerializeAsAny[ImageModelSettings]
    data: SerializeAsAny[ImageData]
    objective: SerializeAsAny[ImageObjective]


def normalised(processor: Any, channels_last: bool = False) -> Collate:
    """Rows to a batch: pixel_values [B, 3, H, W] as the image processor normalises them, labels [B].

    Blended rows bring `targets`, [B, classes] shares, besides.

    Args:
        channels_last: how they lie in memory; convolutions pass it on to each other. The weights stay as they are, and
            so do checkpoints.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    mean_311, std_311 = (torch.tensor(some)[:, None, None] for some in (processor.image_mean, processor.image_std))

    def collate(rows: list[dict[str, Any]]) -> Batch:
        pixels_B3HW = torch.stack([row["pixels"] for row in rows]).float() * processor.rescale_factor
        batch = {"pixel_values": ((pixels_B3HW - mean_311) / std_311).contiguous(memory_format=layout)}
        if "labels" in rows[0]:
            batch["labels"] = torch.as_tensor(np.array([row["labels"] for row in rows]))
        if "targets" in rows[0]:
            batch["targets"] = torch.stack([row["targets"] for row in rows])
        return batch

    return collate


def wants_channels_last(recipe: ImageRecipe) -> bool:
    """What model.channels_last means for a recipe on this machine."""
    wanted = recipe.model.channels_last
    return choose_precision(recipe.train.precision) != "fp32" if wanted == "auto" else wanted


@dataclass(frozen=True)
class AugmentedRows:
    """Training images, varied anew each epoch: everything random is a function of (seed, epoch, index).

    Attributes:
        rows: the images as they are.
        size: side of the images that are returned, pixels.
        classes: how many there are, for the targets of blended rows.
    """

    rows: ImageRows
    settings: Augmentation
    size: int
    classes: int
    seed: int

    lengths = None

    @property
    def fixed(self) -> bool:
        """Whether nothing varies them, so that they are the same in every epoch."""
        return self.settings == type(self.settings)()

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.rows.labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        transform = _transform(self.settings, self.size)
        with torch.random.fork_rng(devices=[]):  # else a batch loaded in this process would move the dropout
            return [self._row(key, transform) for key in keys]

    def _row(self, key: RowKey, transform: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        row = {"pixels": self._varied(key, key.index, transform), "labels": self.rows.labels[key.index]}
        if self.settings.mixup == 0.0 and self.settings.cutmix == 0.0:
            return row
        # The other row is any of the training set and not one of the batch, so that neither the micro-batch nor the
        # number of processes changes what a row is blended with.
        generator = numpy_generator(self.seed, "blend", key.epoch, key.index)
        other = int(generator.integers(len(self.rows)))
        ways = [way for way in ("mixup", "cutmix") if getattr(self.settings, way) > 0.0]
        way = ways[int(generator.integers(len(ways)))]
        alpha = getattr(self.settings, way)
        share = float(generator.beta(alpha, alpha))
        second = self._varied(key, other, transform)
        if way == "mixup":
            mixed = row["pixels"].float() * share + second.float() * (1.0 - share)
            row["pixels"] = mixed.round().to(torch.uint8)
        else:
            row["pixels"], share = _pasted(row["pixels"], second, share, generator)
        targets = torch.zeros(self.classes)
        targets[row["labels"]] += share
        targets[self.rows.labels[other]] += 1.0 - share
        return {**row, "targets": targets}

    def _varied(self, key: RowKey, index: int, transform: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        torch.default_generator.manual_seed(fold(self.seed, "augment", key.epoch, key.index, index))
        return transform(self.rows.image(index)).contiguous()


def _pasted(
    first: torch.Tensor, second: torch.Tensor, share: float, generator: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """`first` with a box of `second`, and the share of the area that is still `first`."""
    _, height, width = first.shape
    side = np.sqrt(1.0 - share)
    y, x = generator.integers(height), generator.integers(width)
    top, bottom = (int(np.clip(y + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(x + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    pasted = first.clone()
    pasted[:, top:bottom, left:right] = second[:, top:bottom, left:right]
    return pasted, 1.0 - (bottom - top) * (right - left) / (height * width)


def _transform(settings: Augmentation, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    steps: list[Any] = []
    if settings.min_crop < 1.0:
        steps.append(v2.RandomResizedCrop(size, scale=(settings.min_crop, 1.0), antialias=True))
    else:
        steps.append(partial(centre, side=size))
    if settings.flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.rotate or settings.shift or settings.zoom or settings.shear:
        steps.append(
            v2.RandomAffine(
                settings.rotate,
                translate=(settings.shift, settings.shift),
                scale=(1.0 - settings.zoom, 1.0 + settings.zoom),
                shear=settings.shear or None,
                interpolation=bilinear,
            )
        )
    if settings.trivial:
        steps.append(v2.TrivialAugmentWide(interpolation=bilinear))
    return v2.Compose(steps)


def image_size(processor: Any, name: str) -> tuple[int, int]:
    """Pixels of the shorter side after resizing, and of the square that is cut out of its centre.

    Raises:
        ConfigError: the processor does something else than resize, crop and normalise.
    """
    size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None)
    edge = _side(size)
    if type(processor).__name__.startswith("ConvNext") and edge is not None and edge < 384:
        return int(edge / processor.crop_pct), edge
    if edge is not None and size.get("shortest_edge") and processor.do_center_crop and _side(crop or {}):
        return edge, cast(int, _side(crop or {}))
    raise ConfigError(
        f"model.name={name} has an image processor that this recipe can't follow: {type(processor).__name__} "
        f"with size {dict(size)}.",
        "It needs one that resizes the shorter side and cuts out the centre: ConvNextImageProcessor below 384 pixels.",
    )


def _side(size: Mapping[str, Any]) -> int | None:
    if size.get("shortest_edge"):
        return int(size["shortest_edge"])
    return int(size["height"]) if size.get("height") and size.get("height") == size.get("width") else None


def save_image_model(processor: Any) -> Callable[[torch.nn.Module, Path], None]:
    """A function that writes model and preprocessing as plain `transformers` reads them."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        processor.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            # safetensors makes files that only their owner reads; a model is to be handed on like the rest.
            weights.chmod((folder / "config.json").stat().st_mode)

    return save


def image_baselines(
    data: LoadedData, rows: Mapping[str, ImageRows], encoder: torch.nn.Module, collate: Collate, seed: int
) -> Callable[[Accelerator, Predict], list[Baseline]]:
    """Majority class, an SVM on pixels, and a probe on the pretrained encoder as it came.

    The encoder's features are computed by all processes together; the rest by the main one.
    """

    def features(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return cast(Any, model)(pixel_values=batch["pixel_values"]).pooler_output.flatten(1)

    def compute(accelerator: Accelerator, predict: Predict = predict_rows) -> list[Baseline]:
        from finetune.evaluation.baselines import majority_class, probe, sample_rows
        from finetune.evaluation.image_baselines import pixel_svm

        chosen, note = sample_rows(len(rows["train"]), seed)
        encoder.to(accelerator.device)
        train_RD = predict(encoder, SomeImages(rows["train"], chosen), collate, features, accelerator, "probe")
        test_RD = predict(encoder, rows["test"], collate, features, accelerator, "probe")
        if not accelerator.is_main_process:
            return []
        labels, classes = rows["train"].labels, len(data.labels)
        probed = probe(train_RD, labels[chosen], test_RD, classes=classes, seed=seed)
        return [
            majority_class(labels, len(rows["test"]), classes),
            pixel_svm(rows["train"], labels, rows["test"], classes=classes, seed=seed),
            probed if not note else type(probed)(probed.name, probed.outputs, note),
        ]

    return compute


@dataclass(frozen=True)
class SomeImages:
    """Some rows of others, by index."""

    rows: Rows
    chosen: NDArray[np.int64]

    lengths = None

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return self.rows.__getitems__([RowKey(key.epoch, int(self.chosen[key.index])) for key in keys])
