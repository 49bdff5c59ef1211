"""Converted image models compute what the originals do, and pipelines see the pixels that a run trained on."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoModelForImageClassification, pipeline

from finetune.cifar_resnet import CIFAR10, cifar_resnet
from finetune.data import image_conversion
from finetune.data.batching import RowKey
from finetune.data.image_conversion import efficientnet_lite0, resnet_config, resnet_state
from finetune.data.image_decoding import decode, resized
from finetune.data.images import ImageRows
from finetune.errors import ConfigError, SourceError
from finetune.image_classification import image_size, normalised
from finetune.image_models import load_image_model, load_processor, resolve_image_model
from finetune.image_settings import ImageModelSettings

pytestmark = pytest.mark.equivalence
BUILTIN = ImageModelSettings(name="builtin:letters_resnet")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_is_the_same_function_in_transformers(name: str) -> None:
    torch.manual_seed(0)
    original = getattr(torchvision.models, name)(weights=None).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    model = AutoModelForImageClassification.from_config(resnet_config(name, [str(index) for index in range(1000)]))
    model.load_state_dict(resnet_state(original.state_dict()), strict=True)
    images_B3HW = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert model.eval()(images_B3HW).logits.equal(original(images_B3HW))


@pytest.mark.parametrize(
    ("name", "weights", "shorter"), [("resnet18", "DEFAULT", 256), ("resnet50", "IMAGENET1K_V2", 232)]
)
def test_torchvisions_weights_come_with_their_own_preprocessing_and_classes(
    name: str, weights: str, shorter: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the weights in torchvision's enum; only what is fetched is put in place, by other tensors."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    original = getattr(torchvision.models, name)(weights=None).eval()
    entry = torchvision.models.get_model_weights(name)[weights]
    fetched = []

    def put(url: str) -> Path:
        fetched.append(url)
        torch.save(original.state_dict(), tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    monkeypatch.setattr(image_conversion, "_download", put)
    files = resolve_image_model(ImageModelSettings(name=f"torchvision/{name}", weights=weights))
    assert fetched == [entry.url]
    assert entry.name in files.name
    processor = load_processor(files)
    assert image_size(processor, files.name) == (shorter, 224)
    assert [*processor.image_mean, *processor.image_std] == [*entry.transforms().mean, *entry.transforms().std]
    model = AutoModelForImageClassification.from_pretrained(files.path).eval()
    assert [model.config.id2label[index] for index in range(1000)] == entry.meta["categories"]
    state = model.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in resnet_state(original.state_dict()).items())


def test_efficientnet_lite0_names_photographs_and_keeps_its_gates_open() -> None:
    files = efficientnet_lite0()
    processor = load_processor(files)
    assert image_size(processor, files.name) == (256, 224)
    model = AutoModelForImageClassification.from_pretrained(files.path)
    gates = [module for name, module in model.named_modules() if name.endswith("squeeze_excite")]
    assert len(gates) == 16
    seen = []
    for gate in gates:
        gate.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].equal(output)))
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    model.eval()(**processor(photos, return_tensors="pt")).logits.sum().backward()
    assert seen == [True] * 16
    assert all(not parameter.grad.any() for gate in gates for parameter in gate.parameters())
    with torch.inference_mode():
        found = model(**processor(photos, return_tensors="pt")).logits.argmax(-1).tolist()
    # ImageNet's classes: 663 monastery, 698 palace and the like for the temple; 985 daisy and the like for the flower.
    assert found[0] in (663, 698, 832, 538, 497, 442)
    assert found[1] in (985, 986, 984, 309, 308)


def test_a_pipeline_gives_the_numbers_of_a_run(tmp_path: Path) -> None:
    files = resolve_image_model(BUILTIN)
    processor = load_processor(files)
    shorter, side = image_size(processor, files.name)
    paths = []
    for number, photo in enumerate(load_sample_images().images):
        paths.append(tmp_path / f"{number}.jpg")
        Image.fromarray(photo).save(paths[-1])
    small = [resized(decode(path, 64), shorter, int(processor.resample)) for path in paths]
    ends = np.cumsum([some.size for some in small])
    rows = ImageRows(
        np.concatenate([some.ravel() for some in small]), ends - [some.size for some in small], ends,
        np.array([len(some) for some in small]), np.zeros(2, np.int64), side,
    )  # fmt: skip
    batch = normalised(processor)(rows.__getitems__([RowKey(0, 0), RowKey(0, 1)]))
    model = AutoModelForImageClassification.from_pretrained(files.path).eval()
    with torch.inference_mode():
        ours = model(batch["pixel_values"]).logits.softmax(-1)
    classify = pipeline("image-classification", str(files.path), top_k=52)
    for row, answers in zip(ours, classify([str(path) for path in paths]), strict=True):
        theirs = {answer["label"]: answer["score"] for answer in answers}
        found = torch.tensor([theirs[model.config.id2label[index]] for index in range(52)])
        torch.testing.assert_close(found, row, rtol=1e-4, atol=1e-6)


def test_a_head_is_kept_only_for_the_same_classes() -> None:
    files = resolve_image_model(BUILTIN)
    published = AutoModelForImageClassification.from_pretrained(files.path)
    letters = tuple(published.config.id2label[index] for index in range(52))
    same, _, new = load_image_model(files, BUILTIN, letters, seed=0)
    assert new == []
    assert same.classifier[1].weight.equal(published.classifier[1].weight)
    for labels in (letters[::-1], letters[:10]):
        other, _, new = load_image_model(files, BUILTIN, labels, seed=0)
        assert new == ["classifier.1.bias", "classifier.1.weight"]
        assert other.resnet.embedder.embedder.convolution.weight.equal(
            published.resnet.embedder.embedder.convolution.weight
        )
        assert other.classifier[1].weight.shape == (len(labels), 64)
        assert not other.classifier[1].weight.equal(published.classifier[1].weight[: len(labels)])
    settings = ImageModelSettings(name=BUILTIN.name, pretrained=False)
    scratch, source, _ = load_image_model(files, settings, letters, seed=0)
    assert source.name.startswith("random weights")
    assert not scratch.classifier[1].weight.equal(published.classifier[1].weight)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "torchvision/vgg16"}, "can't be saved as a plain transformers model"),
        ({"name": "torchvision/resnet18", "weights": "IMAGENET1K_V9"}, "IMAGENET1K_V1"),
        ({"name": "builtin:letters_resnet", "weights": "IMAGENET1K_V1"}, "is ignored by"),
    ],
)
def test_names_and_settings_that_are_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_image_model(ImageModelSettings(**settings))
    assert says in str(refused.value)


@pytest.mark.skipif("FINETUNE_DATA" not in os.environ, reason="FINETUNE_DATA names no folder with benchmark data")
@pytest.mark.parametrize(("name", "parameters"), [("resnet20-12fca82f", 269_722), ("resnet56-4bfd9763", 853_018)])
def test_published_cifar_weights_load_by_name(name: str, parameters: int) -> None:
    file = Path(os.environ["FINETUNE_DATA"]) / "resnet_cifar10_weights" / f"{name}.th"
    settings = ImageModelSettings(name=str(file))
    files = resolve_image_model(settings)
    assert image_size(load_processor(files), "x") == (32, 32)
    model, _, new = load_image_model(files, settings, CIFAR10, seed=0)
    assert new == []
    # Table 6 of the paper: 0.27 and 0.85 million.
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    state = model.state_dict()
    for key, tensor in published.items():
        ours = key.removeprefix("module.").replace("linear.", "classifier.")
        assert state[ours if ours in state else f"resnet.{ours}"].equal(tensor)
    # The statistics belong to these weights: with them, features stay of the order that they were trained to have.
    with torch.inference_mode():
        logits = model.eval()(torch.randn(64, 3, 32, 32)).logits
    assert 1 < float(logits.abs().max()) < 50
    published.pop("module.bn1.weight")
    with pytest.raises(SourceError, match=r"bn1\.weight"):
        cifar_resnet(published, name)
