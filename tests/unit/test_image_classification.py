"""Training images vary by (seed, epoch, index) alone: not by worker, batch, order, or what was drawn before."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.batching import BatchPlan, RowKey
from finetune.data.image_loader import Resizing, load_images
from finetune.data.images import ImageRows
from finetune.data.letters import FONTS, LETTERS, LetterRows, render
from finetune.data.updates import load_updates
from finetune.errors import ConfigError
from finetune.image_classification import AugmentedRows, image_size, normalised
from finetune.image_settings import Augmentation, ImageData
from finetune.recipe import load_recipe, override

pytestmark = pytest.mark.unit
EVERYTHING = Augmentation(
    min_crop=0.5, flip=True, rotate=20, shift=0.1, zoom=0.2, shear=10, trivial=True, mixup=0.4, cutmix=1.0
)


class Processor:
    """The attributes that batches are made by."""

    image_mean = image_std = (0.5, 0.5, 0.5)
    rescale_factor = 1 / 255


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageRows:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return load_images(ImageData(source="digits", rows_per_class=6), Resizing(36, 3, 32))[1]["train"]


def _batches(rows: AugmentedRows, workers: int, micro: int, rank: int = 0, world: int = 1) -> list[dict]:
    plan = BatchPlan(len(rows), None, 12, 2, seed=3)
    updates = load_updates(
        plan,
        rows,
        normalised(Processor()),
        first_update=0,
        micro_batch_size=micro,
        rank=rank,
        world=world,
        workers=workers,
    )
    return [micro.batch for update in updates for micro in update.micro_batches]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # said where one core is free
def test_workers_micro_batches_and_processes_change_no_image(digits: ImageRows) -> None:
    rows = AugmentedRows(digits, EVERYTHING, 32, 10, seed=3)
    alone, loaded = _batches(rows, 0, 12), _batches(rows, 2, 12)
    for one, other in zip(alone, loaded, strict=True):
        assert all(one[name].equal(other[name]) for name in ("pixel_values", "labels", "targets"))
    small = _batches(rows, 0, 6)
    assert torch.cat([batch["targets"] for batch in small]).equal(torch.cat([batch["targets"] for batch in alone]))
    halves = [_batches(rows, 0, 6, rank, 2) for rank in (0, 1)]
    both = torch.cat([batch["pixel_values"] for pair in zip(*halves, strict=True) for batch in pair])
    assert both.equal(torch.cat([batch["pixel_values"] for batch in alone]))


def test_images_differ_by_epoch_and_seed_and_leave_the_dropout_alone(digits: ImageRows) -> None:
    rows = AugmentedRows(digits, Augmentation(rotate=20, shift=0.1), 32, 10, seed=3)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, later = (rows.__getitems__([RowKey(epoch, 5)])[0]["pixels"] for epoch in (0, 0, 1))
    assert torch.rand(3).equal(expected)
    other = AugmentedRows(digits, rows.settings, 32, 10, seed=4).__getitems__([RowKey(0, 5)])[0]["pixels"]
    assert first.equal(again)
    assert not first.equal(later)
    assert not first.equal(other)
    pickle.loads(pickle.dumps(rows))  # noqa: S301  loader workers get it so, where they are not forked


def test_without_augmentation_train_images_are_those_of_evaluation(digits: ImageRows) -> None:
    keys = [RowKey(2, index) for index in range(len(digits))]
    plain = AugmentedRows(digits, Augmentation(), 32, 10, seed=0).__getitems__(keys)
    for one, other in zip(plain, digits.__getitems__(keys), strict=True):
        assert one["pixels"].equal(other["pixels"])


@pytest.mark.parametrize(
    "setting",
    ["min_crop=0.3", "flip=true", "rotate=90", "shift=0.3", "zoom=0.5", "shear=60", "trivial=true"],
)
def test_each_way_to_vary_images_does(digits: ImageRows, setting: str) -> None:
    keys = [RowKey(0, index) for index in range(30)]
    loaded = load_recipe("resnet_img")
    override(loaded, [f"objective.augment.{setting}"])
    varied = AugmentedRows(digits, loaded.recipe.objective.augment, 32, 10, seed=0)
    assert not varied.fixed
    pairs = [
        (one["pixels"], plain["pixels"])
        for one, plain in zip(varied.__getitems__(keys), digits.__getitems__(keys), strict=True)
    ]
    changed = [(one, plain) for one, plain in pairs if not one.equal(plain)]
    assert len(changed) >= 8
    if setting == "flip=true":
        assert len(changed) < 25
        assert all(one.equal(plain.flip(-1)) for one, plain in changed)


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_targets_say_what_is_in_a_blended_image(digits: ImageRows, way: str) -> None:
    rows = AugmentedRows(digits, Augmentation(**{way: 1.0}), 32, 10, seed=0)
    blended = rows.__getitems__([RowKey(0, index) for index in range(len(digits))])
    whole = {index: rows.rows.__getitems__([RowKey(0, index)])[0]["pixels"].float() for index in range(len(digits))}
    shares = []
    for index, row in enumerate(blended):
        torch.testing.assert_close(row["targets"].sum(), torch.tensor(1.0))
        share = float(row["targets"][row["labels"]])
        shares.append(share)
        partners = [other for other in whole if row["targets"][digits.labels[other]] > 0 or share == 1.0]
        if way == "mixup" and share < 1.0:
            made = [share * whole[index] + (1 - share) * whole[other] for other in partners]
            assert min(float((some - row["pixels"].float()).abs().max()) for some in made) <= 0.51
        elif way == "cutmix":
            from_first = (row["pixels"].float() == whole[index]).all(0).float().mean()
            # A partner of the same class hides how large the box was.
            assert share == 1.0 or from_first >= share - 1e-6  # where both images are black, both claim the pixel
    assert np.std(shares) > 0.1


def test_a_metric_that_resnet_img_does_not_keep_the_best_by_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.best_metric"):
        override(load_recipe("resnet_img"), ["objective.best_metric=mcc"])


def test_sizes_that_processors_state() -> None:
    from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    assert image_size(ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875), "x") == (256, 224)
    assert image_size(CLIPImageProcessor(size={"shortest_edge": 256}, crop_size=224), "x") == (256, 224)
    with pytest.raises(ConfigError, match="can't follow"):
        image_size(ViTImageProcessor(), "x")


def test_letters_hold_out_whole_fonts_and_are_a_function_of_seed_epoch_index() -> None:
    fonts = [font for split in FONTS.values() for font in split]
    assert len(set(fonts)) == len(fonts)
    images, labels, ids = render("test")
    assert images.shape == (104, 64, 64)
    assert (images.reshape(104, -1).max(1) > 200).all()
    assert not any(letter.isdigit() for letter in LETTERS)
    assert ids[LETTERS.index("q")].endswith("/q")
    rows = LetterRows(images, labels, 32, seed=1)
    batch = rows.__getitems__([RowKey(4, index) for index in range(20)])
    alone = rows.__getitems__([RowKey(4, 11)])[0]["pixels"]
    assert alone.equal(batch[11]["pixels"])
    assert not alone.equal(rows.__getitems__([RowKey(5, 11)])[0]["pixels"])
    still = LetterRows(images, labels, 32, seed=1, varied=False)
    assert still.__getitems__([RowKey(0, 3)])[0]["pixels"].equal(still.__getitems__([RowKey(9, 3)])[0]["pixels"])
