"""ResNets for CIFAR (arXiv:1512.03385, section 4.2) with the published weights of akamaster/pytorch_resnet_cifar10.

transformers' ResNet begins with a 7x7 stem and pooling, which no choice of weights turns into this 3x3 stem. So a model
that is saved from here loads after `import finetune.cifar_resnet` only, and says so.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from finetune.errors import SourceError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of the training images, as that repository normalises them.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class CifarResNetConfig(PretrainedConfig):
    """`blocks` residual blocks in each of three stages: 3 for ResNet-20, 5 for 32, 7 for 44, 9 for 56."""

    model_type = "cifar_resnet"

    def __init__(self, blocks: int = 3, **others: Any) -> None:
        self.blocks = blocks
        super().__init__(**others)


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride, self.added = stride, (outer - inner) // 2

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCHW)))))
        # Shortcuts without parameters (the paper's option A): every second pixel, with channels of zeros on both sides.
        short = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(short, (0, 0, 0, 0, self.added, self.added)))


class _Body(nn.Module):
    """Stem and stages; the pooled features are [B, 64, 1, 1], as transformers' ResNet gives them."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (inner, outer) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = _Block(inner, outer, 1 if number == 1 else 2)
            self.add_module(
                f"layer{number}", nn.Sequential(first, *(_Block(outer, outer, 1) for _ in range(blocks - 1)))
            )

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        x_BCHW = F.relu(self.bn1(self.conv1(pixel_values)))
        for number in (1, 2, 3):
            x_BCHW = self.get_submodule(f"layer{number}")(x_BCHW)
        pooled = x_BCHW.mean((2, 3), keepdim=True)
        return BaseModelOutputWithPooling(last_hidden_state=x_BCHW, pooler_output=pooled)


class CifarResNetForImageClassification(PreTrainedModel):
    """A classifier of 32 x 32 images, [B, 3, 32, 32] normalised."""

    config_class = CifarResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.resnet = _Body(config.blocks)
        self.classifier = nn.Linear(64, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        pooled = self.resnet(pixel_values).pooler_output
        return ImageClassifierOutput(logits=self.classifier(pooled.flatten(1)))


AutoConfig.register("cifar_resnet", CifarResNetConfig)
AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification)


def cifar_resnet(state: dict[str, torch.Tensor], name: str) -> CifarResNetForImageClassification:
    """The model whose tensors a published file holds, all of them and no other.

    Raises:
        SourceError: a tensor is missing, left over or of another shape.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    blocks = len({key.split(".")[1] for key in plain if key.startswith("layer1.")})
    head = plain.get("linear.weight")
    if blocks == 0 or head is None:
        raise SourceError(
            f"{name} holds no ResNet for CIFAR.", "Known are the files of akamaster/pytorch_resnet_cifar10."
        )
    labels = CIFAR10 if len(head) == 10 else tuple(str(index) for index in range(len(head)))
    config = CifarResNetConfig(
        blocks=blocks, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
    )
    model = CifarResNetForImageClassification(config)
    renamed = {
        f"classifier.{key.removeprefix('linear.')}" if key.startswith("linear.") else f"resnet.{key}": tensor
        for key, tensor in plain.items()
    }
    # Files of before PyTorch 0.4.1 don't count batches; nothing reads that number at this momentum.
    counted = {key: tensor for key, tensor in model.state_dict().items() if key.endswith("num_batches_tracked")}
    try:
        model.load_state_dict({**counted, **renamed}, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise SourceError(f"{name} is no ResNet for CIFAR: {reason}", "Fetch it again.") from None
    return cast(CifarResNetForImageClassification, model.eval())
