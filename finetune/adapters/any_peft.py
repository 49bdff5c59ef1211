"""Any other method of the PEFT library, by the name of its configuration class and that class's own fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from finetune.adapters.peft_adapter import PeftAdapter
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task

# Fields that this toolkit sets, with what sets them.
OURS = {
    "target_modules": "adapter.targets",
    "modules_to_save": "adapter.train_modules",
    "base_model_name_or_path": "model.name",
    "revision": "model.revision",
    "task_type": "the recipe",
    "peft_type": "adapter.config_class",
    "inference_mode": "the run",
    "auto_mapping": "the run",
    "peft_version": "the run",
}
# Methods that need more than a wrapped model: what to take instead.
NEEDS_MORE = {"AdaLoraConfig": "adapter=adalora takes ranks away as it trains."}


class AnyPeft(PeftAdapter):
    """A PEFT method by name. It must adapt modules of the model and be mergeable into them."""

    name: Literal["peft"] = "peft"
    config_class: str = ""
    """Name of a PEFT configuration class, for example LoHaConfig."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Fields of that class as JSON, for example {"r": 4, "alpha": 8}."""

    kinds: ClassVar[tuple[str, ...]] = (
        "Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d", "LayerNorm",
    )  # fmt: skip

    def peft_config(self, model: torch.nn.Module, task: Task, total_updates: int) -> Any:
        kind = self._class()
        if kind.__name__ in NEEDS_MORE:
            raise ConfigError(f"adapter.config_class={kind.__name__} alone would not work.", NEEDS_MORE[kind.__name__])
        known = {field.name for field in dataclasses.fields(kind) if field.init}
        if "target_modules" not in known:
            raise ConfigError(
                f"adapter.config_class={kind.__name__} adapts no modules of the model, so that it can't be merged.",
                "Choose a method that does, for example LoHaConfig.",
            )
        try:
            return kind(**self._checked(kind, known), target_modules=self.found_targets(model, task))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"adapter.settings is refused by {kind.__name__}: {error}",
                f"See PEFT's documentation of {kind.__name__}.",
            ) from None

    def _class(self) -> type[Any]:
        import peft

        names = [
            name
            for name in dir(peft)
            if name.endswith("Config") and dataclasses.is_dataclass(getattr(peft, name)) and name != "PeftConfig"
        ]
        if self.config_class not in names:
            lower = {name.lower(): name for name in names}
            near = [lower[name] for name in difflib.get_close_matches(self.config_class.lower(), lower, n=1)]
            raise ConfigError(
                f"adapter.config_class={self.config_class or 'none'} is no configuration class of PEFT.",
                (f"Did you mean {near[0]}? " if near else "") + "For example --set adapter.config_class=LoHaConfig",
            )
        return getattr(peft, self.config_class)

    def _checked(self, kind: type[Any], known: set[str]) -> dict[str, Any]:
        """The settings, each checked against the type that its field is annotated with."""
        hints, values = typing.get_type_hints(kind), {}
        for name, value in self.settings.items():
            if name in OURS:
                raise ConfigError(f"adapter.settings has {name!r}, which is set by {OURS[name]}.", "Leave it out.")
            if name not in known:
                near = difflib.get_close_matches(name, known - set(OURS), n=1)
                raise ConfigError(
                    f"adapter.settings has {name!r}, which is no field of {kind.__name__}.",
                    f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(known - set(OURS)))}.",
                )
            try:
                # From JSON, so that a list may become a set; strict, so that "4" is no number.
                values[name] = TypeAdapter(hints[name]).validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                raise ConfigError(
                    f"adapter.settings: {name}={json.dumps(value)} is refused: {error.errors()[0]['msg'].lower()}.",
                    f"PEFT declares it as {getattr(hints[name], '__name__', None) or hints[name]}.",
                ) from None
            except PydanticSchemaGenerationError:
                raise ConfigError(f"adapter.settings: {name} can't be given as JSON.", "Leave it out.") from None
        return values
