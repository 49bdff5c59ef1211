"""Pretrained weights into a transformers model: only safetensors, no remote code, nothing left out silently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from finetune.data.sources import ModelFiles


def load_tokenizer(files: ModelFiles, of_words: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Args:
        of_words: it will be given words: byte-level ones (RoBERTa's) must then put a space before each.

    Raises:
        SourceError: the folder has none that loads.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.path, local_files_only=True, trust_remote_code=False)
        if of_words and getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = AutoTokenizer.from_pretrained(
                files.path, local_files_only=True, trust_remote_code=False, add_prefix_space=True
            )
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"model.name={files.name} has no tokenizer that loads: {_first_line(error)}",
            "Use a model folder that holds tokenizer.json (or vocab.txt) and tokenizer_config.json.",
        ) from None


def load_pretrained(
    auto_class: Any,
    files: ModelFiles,
    *,
    dropout: float | None = None,
    new_modules: tuple[str, ...] | Callable[[PreTrainedModel], tuple[str, ...]] = (),
    replaceable: bool = False,
    **config: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """A model in fp32 from pretrained weights.

    Args:
        auto_class: a transformers auto class, for example AutoModelForSequenceClassification.
        dropout: every dropout probability of the configuration; None keeps them.
        new_modules: modules that may be missing in the weights (a new head); anything else missing is refused.
            A function says it of the model, where names differ by architecture.
        replaceable: weights of `new_modules` for another number of classes are replaced by new ones.
        config: attributes of the model's configuration, for example id2label.

    Returns:
        The model in train mode, and the names of the parameters that were newly initialised.

    Raises:
        ConfigError: the model is of a kind that the auto class can't load, or dropout has nothing to act on.
        SourceError: weights are missing or of the wrong shape.
    """
    from transformers import AutoConfig

    try:
        model_config = AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=False, **config)
        if dropout is not None:
            set_dropout(model_config, dropout, files.name)
        model, info = auto_class.from_pretrained(
            files.path,
            config=model_config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=replaceable,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.name={files.name} can't be loaded as {auto_class.__name__}: {_first_line(error)}",
            "Name a model of that kind, or a folder with config.json and model.safetensors.",
        ) from None
    if callable(new_modules):
        new_modules = new_modules(model)
    mismatched = [str(name[0] if isinstance(name, tuple) else name) for name in (info.get("mismatched_keys") or [])]
    wrong = [name for name in mismatched if not (replaceable and name.startswith(new_modules))]
    missing = sorted({*info["missing_keys"], *(name for name in mismatched if name not in wrong)})
    fresh = [name for name in missing if name.startswith(new_modules)] if new_modules else []
    if wrong or len(fresh) < len(missing):
        names = wrong or [name for name in missing if name not in fresh]
        raise SourceError(
            f"model.name={files.name} lacks weights that {type(model).__name__} needs: {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
            "These would silently be random numbers. Name a model of the right architecture.",
        )
    return model.train(), fresh


def random_weights(config: PretrainedConfig, seed: int) -> ModelFiles:
    """What a record says of a model that starts from no weights: its architecture, and a hash of that and the seed."""
    from finetune.data.sources import ModelFiles

    content = json.dumps([config.to_dict(), seed], sort_keys=True, default=str)
    name = f"random weights ({config.model_type})"
    return ModelFiles(Path(), name, None, hashlib.sha256(content.encode()).hexdigest())


def set_dropout(config: PretrainedConfig, probability: float, name: str) -> None:
    """Set every dropout probability of a configuration; BERT, GPT-2 and DistilBERT name them differently."""
    found = [
        key
        for key, value in vars(config).items()
        if ("dropout" in key or key.endswith("pdrop")) and (value is None or isinstance(value, (int, float)))
    ]
    if not found:
        raise ConfigError(f"model.dropout is ignored by {name}: its configuration has no dropout.", "Leave it out.")
    for key in found:
        setattr(config, key, probability)


def check_positions(
    model: torch.nn.Module, longest: int, setting: str = "data.max_tokens", virtual_tokens: int = 0
) -> None:
    """Refuse rows that are longer than a table of learned positions; models with computed positions have none.

    Args:
        setting: what cuts rows.
        virtual_tokens: positions that an adapter takes up before each row.

    Raises:
        ConfigError: names the setting and the longest that the model takes.
    """
    for name, module in model.named_modules():
        # BERT and its kin name the table so, GPT-2 wpe.
        if name.endswith(("position_embeddings", ".wpe")) and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's.
            takes = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            room = takes - virtual_tokens
            if longest > room:
                why = f", of which adapter.tokens takes up {virtual_tokens}" if virtual_tokens else ""
                raise ConfigError(
                    f"The longest row has {longest} tokens, but the model takes {takes}{why}.",
                    f"Cut rows there: --set {setting}={room}" if room > 0 else f"Set adapter.tokens below {takes}.",
                )


def weight_bytes(folder: Path) -> int:
    """Size of a model folder's weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _first_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def head_modules(model: PreTrainedModel, new: list[str]) -> list[str]:
    """Names of the modules that every adapter trains: the head, and what else has no pretrained weights."""
    names = [
        name
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    ]
    inside = {name.rpartition(".")[0] for name in new}
    return names + sorted(name for name in inside if name and name.partition(".")[0] not in names)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files, the same ones whatever it was used for before.

    A fast tokenizer writes down how its last call cut and padded; every call sets that anew, so it belongs to no file,
    and it would make a run whose tokens came from the cache differ from one that computed them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)
