"""Models of timm (PyTorch Image Models) through transformers' wrapper: hub names such as timm/resnet18.a1_in1k."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finetune.errors import ConfigError, SourceError

# A name of one of timm's own architectures. timm would take `hf-hub:NAME` and `local-dir:PATH` for sources of weights.
ARCHITECTURE = re.compile(r"\w+(\.\w+)?")
# Pillow's numbers of timm's names.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def is_timm(folder: Path) -> bool:
    """Whether a model folder is one of timm's: its config.json says how the weights were pretrained."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and ("pretrained_cfg" in config or config.get("model_type") == "timm_wrapper")


def check_timm(folder: Path, name: str) -> None:
    """Refuse a folder of timm's that can't be used here, before timm reads it.

    Args:
        name: the model as the user named it, for messages.

    Raises:
        ConfigError: timm is not installed, or this version has no such architecture.
        SourceError: the folder names weights elsewhere.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"model.name={name} is a model of timm, which is not installed.", "pip install timm")
    import timm

    config = json.loads((folder / "config.json").read_text("utf-8"))
    architecture, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(architecture, str) or not ARCHITECTURE.fullmatch(architecture):
        raise SourceError(f"{name}: config.json, architecture is {architecture!r}, no name of timm's.")
    if not timm.is_model(architecture):
        raise ConfigError(
            f"model.name={name} has the architecture {architecture}, which timm {timm.__version__} doesn't know.",
            "pip install --upgrade timm",
        )
    # Those of create_model itself say where weights come from; one of them is a checkpoint that could run code.
    own = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}
    wrong = sorted(own & set(arguments)) if isinstance(arguments, dict) else ["model_args"]
    if wrong or arguments.get("features_only"):
        raise SourceError(
            f"{name}: config.json, model_args.{(wrong or ['features_only'])[0]} is not for a classifier's weights.",
            "Take it out of a local copy.",
        )


def timm_config(folder: Path) -> dict[str, Any]:
    """What has to be changed in a folder's configuration so that transformers' wrapper can build the model.

    timm writes the number of classes among the arguments since 1.0.31, and the wrapper would state it twice.
    """
    arguments = json.loads((folder / "config.json").read_text("utf-8")).get("model_args")
    return {"model_args": {key: value for key, value in arguments.items() if key != "num_classes"}} if arguments else {}


@contextmanager
def timm_errors(name: str) -> Iterator[None]:
    """What timm raises while it builds a model is a setting of the folder that it can't take."""
    try:
        yield
    except (TypeError, RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"model.name={name}: timm can't build the model: {reason}") from None


class TimmPreprocessing:
    """The preprocessing that a folder of timm's states, with the attributes of transformers' image processors.

    Pixels are resized and cut as for other models. timm's own resizing (Pillow's) rounds otherwise, and where margins
    are odd its square lies one pixel to the right or below; so a pipeline's scores differ a little from the run's.

    Raises:
        ConfigError: it does something else than resize the shorter side, cut out the centre and normalise.
    """

    do_center_crop = True
    rescale_factor = 1 / 255

    def __init__(self, processor: Any, name: str) -> None:
        config = processor.data_config
        channels, height, width = config["input_size"]
        plain = channels == 3 and height == width and config.get("crop_mode", "center") == "center"
        if not plain or config.get("crop_border_pixels") or config["interpolation"] not in RESAMPLE:
            raise ConfigError(
                f"model.name={name} has a preprocessing that this recipe can't follow: {config}.",
                "It needs one that resizes the shorter side and cuts out the centre of an RGB image.",
            )
        self.size = {"shortest_edge": math.floor(height / config["crop_pct"])}
        self.crop_size = {"height": height, "width": width}
        self.resample = RESAMPLE[config["interpolation"]]
        self.image_mean, self.image_std = list(config["mean"]), list(config["std"])

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: timm keeps preprocessing in config.json, and the model writes that."""


def timm_heads(model: Any) -> tuple[str, ...]:
    """Names of the linear layers that make a wrapped classifier's logits.

    Raises:
        ConfigError: they are of another kind.
    """
    heads = model.timm_model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    names = tuple(name for name, module in model.named_modules() if any(module is head for head in heads))
    if len(names) != len(heads) or not all(isinstance(head, torch.nn.Linear) for head in heads):
        kinds = ", ".join(type(head).__name__ for head in heads)
        raise ConfigError(
            f"{model.config.architecture} has a head that is no linear layer: {kinds}.",
            "Take another architecture of timm's.",
        )
    return names


class TimmEncoder(torch.nn.Module):
    """A wrapped classifier without its head: `pooler_output` [B, width], as transformers' own models give it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.timm_model = model.timm_model

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        hidden = self.timm_model.forward_features(pixel_values)
        pooled = self.timm_model.forward_head(hidden, pre_logits=True)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
