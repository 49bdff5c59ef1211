"""Image models by name: from folders, the hub, this package, torchvision and a wheel; all become plain transformers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.data.sources import ModelFiles, resolve_model
from finetune.errors import ConfigError, SourceError
from finetune.image_settings import ImageModelSettings
from finetune.models import head_modules, load_pretrained, random_weights, set_dropout
from finetune.randomness import seed_torch
from finetune.timm_models import (
    TimmEncoder,
    TimmPreprocessing,
    check_timm,
    is_timm,
    timm_config,
    timm_errors,
    timm_heads,
)  # fmt: skip

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUILTIN, TORCHVISION = "builtin:", "torchvision/"
EFFICIENTNET_LITE0 = "efficientnet_lite0"


def resolve_image_model(settings: ImageModelSettings) -> ModelFiles:
    """A model folder on this machine, converted from another format once where it must be.

    Raises:
        SourceError: it can't be found, fetched or converted.
        ConfigError: a setting that this kind of name ignores.
    """
    name = settings.name
    if not name.startswith(TORCHVISION) and settings.weights != "DEFAULT":
        raise ConfigError(f"model.weights={settings.weights} is ignored by {name}.", "It is for torchvision/NAME only.")
    if name.startswith(BUILTIN):
        folder = Path(__file__).parent / "pretrained" / name.removeprefix(BUILTIN)
        if not (folder / "config.json").is_file():
            there = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
            raise SourceError(
                f"There is no model {name}.", f"There are: {', '.join(BUILTIN + some for some in there)}."
            )
        files = resolve_model(str(folder), settings.revision)
        return ModelFiles(files.path, name, None, files.sha256)
    if name.startswith(TORCHVISION) or name == EFFICIENTNET_LITE0 or name.endswith(".th"):
        from finetune.data import image_conversion

        if settings.revision is not None:
            raise SourceError(f"model.revision={settings.revision} doesn't go with {name}.", "It is for hub ids.")
        if name.endswith(".th"):
            return image_conversion.cifar_model(name)
        if name == EFFICIENTNET_LITE0:
            return image_conversion.efficientnet_lite0()
        return image_conversion.torchvision_model(name.removeprefix(TORCHVISION), settings.weights)
    files = resolve_model(name, settings.revision)
    if is_timm(files.path):
        check_timm(files.path, name)
    return files


def own_architecture(model: torch.nn.Module) -> list[str]:
    """A note where plain transformers can't load what is saved."""
    if type(model).__module__ == "finetune.cifar_resnet":
        return ["plain transformers has no ResNet for CIFAR: model/ loads after `import finetune.cifar_resnet`"]
    if hasattr(model, "timm_model"):
        return ["the model is one of timm's: model/ loads where timm is installed besides transformers"]
    return []


def load_processor(files: ModelFiles) -> Any:
    """The model's own image processor.

    Raises:
        SourceError: the folder has none that loads.
        ConfigError: it is timm's and does what can't be followed.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(files.path, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise SourceError(
            f"model.name={files.name} needs what is not installed: {_first_line(error)}",
            "Name a model that transformers runs by itself.",
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"model.name={files.name} has no image processor that loads: {_first_line(error)}",
            "Use a model folder that holds preprocessor_config.json.",
        ) from None
    return TimmPreprocessing(processor, files.name) if is_timm(files.path) else processor


def load_image_model(
    files: ModelFiles, settings: ImageModelSettings, labels: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, ModelFiles, list[str]]:
    """A classifier of these labels, in fp32 and train mode, with a new head unless the model has these very labels.

    Returns:
        The model, where its weights came from (nowhere with model.pretrained=false), and the names of the parameters
        that were newly initialised from the seed.

    Raises:
        ConfigError: it is no image classifier of transformers, or dropout has nothing to act on.
        SourceError: weights of the body are missing.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    import finetune.cifar_resnet  # noqa: F401  makes its architecture known to the auto classes
    from finetune.text_classification import label_maps

    timm = is_timm(files.path)
    maps = label_maps(labels) | (timm_config(files.path) if timm else {})
    found = AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=False)
    seed_torch(seed, "head")
    if not settings.pretrained:
        config = AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=False, **maps)
        if settings.dropout is not None:
            set_dropout(config, settings.dropout, files.name)
        with timm_errors(files.name) if timm else nullcontext():
            model = AutoModelForImageClassification.from_config(config).float().train()
        return model, random_weights(config, seed), []
    with timm_errors(files.name) if timm else nullcontext():
        model, new = load_pretrained(
            AutoModelForImageClassification,
            files,
            dropout=settings.dropout,
            new_modules=timm_heads if timm else ("classifier",),
            replaceable=True,
            **maps,
        )
    if new or [str(name) for _, name in sorted(found.id2label.items())] != list(labels):
        new = sorted({*new, *_reset_head(model, seed)})
    return model, files, new


def image_head(model: PreTrainedModel) -> list[str]:
    """Names of the modules that every adapter trains."""
    return list(timm_heads(model)) if hasattr(model, "timm_model") else head_modules(model, [])


def image_encoder(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head, whose `pooler_output` is what the head sees."""
    return TimmEncoder(model) if hasattr(model, "timm_model") else model.base_model


def _reset_head(model: PreTrainedModel, seed: int) -> list[str]:
    """Give the head new weights: a trained one for other classes of the same number would pass unnoticed."""
    seed_torch(seed, "head")
    names = []
    for head in image_head(model):
        for inner, module in model.get_submodule(head).named_modules():
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()
                names += [".".join(filter(None, [head, inner, name])) for name, _ in module.named_parameters()]
    return names


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
