"""The plain torchvision loop of the tutorials: ImageFolder, transforms at every epoch, SGD with momentum, fp32."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from tests.peers.clock import Clock


def train(request: dict[str, Any]) -> dict[str, Any]:
    best, frozen = request["side"] == "best", request["peer"] == "torchvision_frozen"
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    splits = {name: ImageFolder(str(Path(request["data"]) / name), prepare) for name in ("train", "test")}
    loader = DataLoader(splits["train"], batch_size=request["batch"], shuffle=True)
    model = models.resnet18(weights=None, num_classes=len(splits["train"].classes))
    if frozen:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    if best:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    clock = Clock(request)
    updates = request["warm_up"] + request["updates"]
    epochs = range(request["epochs"]) if request["epochs"] else itertools.count()
    model.train()
    clock.start()
    for pixels, labels in itertools.islice((batch for _ in epochs for batch in loader), _most(request, updates)):
        if best:
            pixels = pixels.to(memory_format=torch.channels_last)
        clock.batches.append((len(labels), 0))
        with torch.autocast("cpu", torch.bfloat16) if best else nullcontext():
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
    return clock.found("bf16" if best else "fp32", accuracy)


def _most(request: dict[str, Any], updates: int) -> int | None:
    return None if request["epochs"] else updates
