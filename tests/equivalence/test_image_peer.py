"""The torchvision loop that `finetune bench speed` compares with has the slice's weights and sees its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.bench.speed.rows import ROWS
from finetune.bench.speed.slices import prepare
from finetune.data.batching import RowKey
from finetune.recipe import load_recipe, override
from tests.peers.images import preparation, pretrained

pytestmark = pytest.mark.equivalence


@pytest.fixture(scope="module")
def slice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices") / "resnet"
    row = next(some for some in ROWS if some.name == "resnet_frozen")
    prepare(row, 2, folder)
    return folder


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_transformers(slice_folder: Path, training: bool) -> None:
    from transformers import AutoModelForImageClassification

    ours = AutoModelForImageClassification.from_pretrained(slice_folder / "resnet18").train(training)
    peer = pretrained(slice_folder / "resnet18", ours.config.num_labels).train(training)
    pixels_BCHW = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(pixels_BCHW).logits, peer(pixels_BCHW), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())


def test_both_begin_with_the_same_head(slice_folder: Path) -> None:
    loaded = load_recipe("resnet_img")
    override(loaded, [f"data.source={slice_folder / 'data'}", f"model.name={slice_folder / 'resnet18'}"])
    task = loaded.build()
    assert not any("new weights" in note for note in task.notes)
    folders = sorted(path.name for path in (slice_folder / "data" / "train").iterdir())
    assert list(task.data.labels) == folders  # ImageFolder's classes, in its order
    peer = pretrained(slice_folder / "resnet18", len(folders)).eval()
    batch = task.collate(task.rows["valid"].__getitems__([RowKey(0, row) for row in range(4)]))
    with torch.inference_mode():
        ours = task.logits(task.model.eval(), batch)
        assert torch.allclose(ours, peer(batch["pixel_values"]), rtol=1e-4, atol=1e-5)


def test_pixels_are_those_of_the_processor(slice_folder: Path) -> None:
    """But for the rounding of either's resizing."""
    from transformers import AutoImageProcessor

    path = min((slice_folder / "data" / "train").rglob("*.png"))
    image = Image.open(path).convert("RGB")
    theirs = preparation(slice_folder / "resnet18")(image).numpy()
    processor = AutoImageProcessor.from_pretrained(slice_folder / "resnet18")
    ours = np.asarray(processor(images=[image])["pixel_values"][0])
    assert theirs.shape == ours.shape == (3, 224, 224)
    assert np.abs(theirs - ours).mean() < 0.02
    assert np.abs(theirs - ours).max() < 0.2
