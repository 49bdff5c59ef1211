"""A model of timm with real weights, in the layout of the hub: fine-tuned, exported, and run by transformers alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from finetune.cli import main
from finetune.data.image_conversion import LITE0_MEMBER, LITE0_WHEEL, efficientnet_lite0
from finetune.data.image_decoding import resized
from finetune.data.images import centre
from finetune.data.sources import wheel_members
from finetune.image_classification import image_size
from finetune.image_models import image_encoder, image_head, load_image_model, load_processor, resolve_image_model
from finetune.image_settings import ImageModelSettings
from tests.integration.test_launch_line import fresh_accelerate

timm = pytest.importorskip("timm")
__all__ = ["fresh_accelerate"]  # a fixture
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 as timm itself saves it for the hub, with the weights of its authors."""
    from timm.models import save_for_hf

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    published = torch.load(wheel_members(LITE0_WHEEL, [LITE0_MEMBER])[LITE0_MEMBER], weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    folder = tmp_path_factory.mktemp("timm") / "tf_efficientnet_lite0.in1k"
    folder.mkdir()
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def test_it_computes_what_the_same_weights_do_without_timm(lite0: Path) -> None:
    settings = ImageModelSettings(name=str(lite0))
    files = resolve_image_model(settings)
    processor = load_processor(files)
    shorter, side = image_size(processor, "x")
    assert (shorter, side) == (256, 224)
    model, _, new = load_image_model(files, settings, tuple(f"class {index}" for index in range(7)), seed=0)
    assert new == ["timm_model.classifier.bias", "timm_model.classifier.weight"]
    assert image_head(model) == ["timm_model.classifier"]
    other = AutoModelForImageClassification.from_pretrained(efficientnet_lite0().path).eval()
    whole = load_image_model(files, settings, labels_of_imagenet(lite0), seed=0)[0].eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(whole.config.pretrained_cfg))
    for photo in load_sample_images().images:
        small_3HW = torch.from_numpy(resized(photo, shorter, processor.resample)).permute(2, 0, 1)
        ours = (centre(small_3HW, side) / 255 - 0.5) / 0.5
        theirs = transform(Image.fromarray(photo))
        # Where the margins are odd, timm's crop lies a pixel to the right; and Pillow's resizing rounds by itself.
        right = small_3HW.roll(-((small_3HW.shape[2] - side) % 2), 2)
        assert (theirs - (centre(right, side) / 255 - 0.5) / 0.5).abs().max() < 0.03
        with torch.inference_mode():
            torch.testing.assert_close(whole(ours[None]).logits, other(ours[None]).logits, rtol=1e-4, atol=1e-4)
            features = image_encoder(model.eval())(pixel_values=ours[None]).pooler_output
            torch.testing.assert_close(
                features.flatten(1), other.base_model(ours[None]).pooler_output.flatten(1), rtol=1e-4, atol=1e-4
            )


def labels_of_imagenet(folder: Path) -> tuple[str, ...]:
    config = AutoConfig.from_pretrained(folder)
    return tuple(config.id2label[index] for index in range(1000))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run(lite0: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_digits()
    for row in np.flatnonzero(digits.target < 2)[:70]:
        place = tmp_path / "photos" / ("zero", "one")[digits.target[row]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(digits.images[row] * 255 / 16).astype(np.uint8)).save(place / f"{row}.png")
    run, image = tmp_path / "run", tmp_path / "photos" / "one" / "1.png"
    settings = [
        f"model.name={lite0}",
        "train.max_updates=3",
        "train.batch_size=8",
        f"data.source={tmp_path / 'photos'}",
    ]
    settings += ["adapter.rank=2", "adapter.targets=conv_pw,conv_pwl"]
    options = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "resnet_img", "--adapter", "lora", *options, "--output", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    assert {part["flips"] for part in record["export_check"]["parts"].values()} == {0}
    assert any("timm" in note for note in record["data"]["notes"])
    # The probe sees ImageNet's features, which tell a 0 from a 1 by a few images.
    assert record["baselines"]["frozen-encoder probe"]["accuracy"]["value"] > 0.9
    capsys.readouterr()
    assert main(["predict", str(run), "--image", str(image)]) == 0
    answer = json.loads(capsys.readouterr().out)
    scores = pipeline("image-classification", str(run / "model"))(str(image))
    assert {score["label"] for score in scores} == {"zero", "one"}
    for score in scores:
        assert score["score"] == pytest.approx(answer["probabilities"][score["label"]], abs=0.01)
