"""Settings of image classification: which model, which images, how they are varied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.config import ClassificationObjective, DataSettings, ModelSettings, Section, Share


class ImageModelSettings(ModelSettings):
    """Which pretrained image model."""

    name: str
    """Hub id (`microsoft/resnet-18`), local folder, `builtin:NAME`, `torchvision/NAME` (resnet18, ...),
    `efficientnet_lite0`, or a .th file of akamaster/pytorch_resnet_cifar10."""
    pretrained: bool = True
    """Start from the pretrained weights; false takes the same architecture with random ones, to see what they bring."""
    weights: str = "DEFAULT"
    """Which of torchvision's weights, for example IMAGENET1K_V2; only for `torchvision/NAME`."""
    channels_last: bool | Literal["auto"] = "auto"
    """Lay images out with their channels last, which convolutions in low precision are faster with: the same but for
    rounding. `auto` does so in bf16 and fp16."""


class ImageData(DataSettings):
    """Images with one label each."""

    source: str
    """Data card name, folder of class folders (alone, or inside train/valid/test), a table of paths and labels
    (CSV, TSV, JSONL, Parquet), Parquet with the images inside, or a hub id of such."""
    image: str | None = None
    """Name of the column with paths (relative to the table) or images. `none` finds it (image, path, file, ...)."""
    label: str | None = None
    """Name of the label column. `none` finds it (label, category, class, target, ...)."""
    rows_per_class: Annotated[int, Field(ge=0)] | None = None
    """Train on the first so many training rows of each class (in the order of the split hash). `none` is what the data
    card states, else all; 0 takes all whatever it states."""
    skip_broken: bool = False
    """Leave broken images out, counted and named, instead of refusing the data."""
    max_megapixels: Annotated[float, Field(gt=0.0)] = 64.0
    """An image whose header says more is refused before it is decoded: a small file can unpack to gigabytes."""


class Augmentation(Section):
    """How training images are varied, at random by (seed, epoch, row)."""

    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Least share of the image's area that a random crop keeps; 1 takes the centre crop, as in evaluation."""
    flip: bool = False
    """Mirror half of the images left to right; wrong for letters and digits."""
    rotate: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Rotate by up to so many degrees either way."""
    shift: Share = 0.0
    """Shift by up to this share of the side, either way."""
    zoom: Share = 0.0
    """Shrink or enlarge by up to this share."""
    shear: Annotated[float, Field(ge=0.0, lt=90.0)] = 0.0
    """Shear by up to so many degrees either way."""
    trivial: bool = False
    """One random operation of random strength on each image (TrivialAugment, arXiv:2103.10158)."""
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """Blend each image and its label with those of another training row, by a share from Beta(mixup, mixup)
    (arXiv:1710.09412); 0.2 is usual, 0 is off."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """Paste a box of another training row into each image, its area from Beta(cutmix, cutmix) (arXiv:1905.04899).
    With both, each row takes one of them at random."""


class ImageObjective(ClassificationObjective):
    """The classification loss, and the augmentation of training images."""

    best_metric: Literal["accuracy"] = "accuracy"
    """What the kept checkpoint is best at, on the validation rows."""
    augment: Augmentation = Field(default_factory=Augmentation)
