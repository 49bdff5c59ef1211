"""The plain torchvision loop of the tutorials: ImageFolder, transforms at every epoch, SGD with momentum, fp32.

It begins with the slice's weights, and normalises images as these want it.
"""

from __future__ import annotations

import itertools
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from tests.peers.clock import Clock

# As image processors number them, which is as PIL does.
INTERPOLATIONS = {2: transforms.InterpolationMode.BILINEAR, 3: transforms.InterpolationMode.BICUBIC}


def train(request: dict[str, Any]) -> dict[str, Any]:
    best, frozen = request["side"] == "best", request["peer"] == "torchvision_frozen"
    low = best and request["best_precision"] == "bf16"
    prepare = preparation(Path(request["model"]))
    splits = {name: ImageFolder(str(Path(request["data"]) / name), prepare) for name in ("train", "test")}
    loader = DataLoader(splits["train"], batch_size=request["batch"], shuffle=True)
    model = pretrained(Path(request["model"]), len(splits["train"].classes))
    if frozen:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    if best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    clock = Clock(request)
    updates = request["warm_up"] + request["updates"]
    epochs = range(request["epochs"]) if request["epochs"] else itertools.count()
    # What is frozen computes with its own statistics; in training mode BatchNorm would take each batch's.
    model.train(not frozen)
    clock.start()
    for pixels, labels in itertools.islice((batch for _ in epochs for batch in loader), _most(request, updates)):
        if best:
            pixels = pixels.to(memory_format=torch.channels_last)
        clock.batches.append((len(labels), 0))
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            logits = model(pixels)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.losses.append(loss.item())
        clock.update_done()
    accuracy = None
    if request["epochs"]:
        model.eval()
        with torch.inference_mode():
            right = [
                (model(pixels).argmax(-1) == labels).float() for pixels, labels in DataLoader(splits["test"], 32)
            ]  # fmt: skip
        accuracy = float(torch.cat(right).mean())
    return clock.found("bf16" if low else "fp32", accuracy)


def preparation(folder: Path) -> transforms.Compose:
    """An image to what the model of the folder was given before."""
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    side = settings["size"]["shortest_edge"]
    return transforms.Compose(
        [
            transforms.Resize(round(side / settings["crop_pct"]), INTERPOLATIONS[settings["resample"]]),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(settings["image_mean"], settings["image_std"]),
        ]
    )


def pretrained(folder: Path, classes: int) -> models.ResNet:
    """torchvision's ResNet-18 with the weights of a folder that transformers wrote, under torchvision's names."""
    model = models.resnet18(weights=None, num_classes=classes)
    model.load_state_dict(
        {torchvision_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    )
    return model


def torchvision_name(name: str) -> str:
    """What torchvision calls a parameter of transformers' ResNet with basic blocks."""
    name = name.replace("classifier.1.", "fc.").replace("resnet.embedder.embedder.convolution", "conv1")
    name = name.replace("resnet.embedder.embedder.normalization", "bn1")
    if not (block := re.fullmatch(r"resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.(.+)", name)):
        return name
    stage, layer, part = block.groups()
    part = part.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    part = re.sub(r"layer\.(\d)\.convolution", lambda found: f"conv{int(found[1]) + 1}", part)
    part = re.sub(r"layer\.(\d)\.normalization", lambda found: f"bn{int(found[1]) + 1}", part)
    return f"layer{int(stage) + 1}.{layer}.{part}"


def _most(request: dict[str, Any], updates: int) -> int | None:
    return None if request["epochs"] else updates
