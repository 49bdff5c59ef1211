"""Prompt and prefix tuning: a language model stays as it is, and trained virtual tokens stand before every text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from finetune.adapters.adapter import Adapter
from finetune.adapters.peft_adapter import load_peft, quiet, save_peft
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task


class VirtualTokens(Adapter):
    """What both methods share. Nothing is merged: they change no weights, so the run saves adapter/ and its base."""

    tokens: Annotated[int, Field(ge=1)] = 20
    """Virtual tokens before every text. They take up positions of the model's context."""

    mergeable: ClassVar[bool] = False

    def peft_config(self) -> Any:
        """The PEFT configuration."""
        raise NotImplementedError

    def check(self, task: Task, total_updates: int) -> None:
        if task.kind != "text-generation":
            raise ConfigError(
                f"adapter={self.name} puts virtual tokens before what a language model goes on from; this recipe's "
                f"task is {task.kind}.",
                "Use adapter=lora, or a recipe of a language model: gpt2_clm, gpt2_sft.",
            )
        if self.head_lr_ratio != 1.0:
            raise ConfigError(
                f"adapter.head_lr_ratio is ignored by adapter={self.name}, which trains no head.", "Leave it out."
            )

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        from peft import get_peft_model

        try:
            with quiet():
                return get_peft_model(model, self.peft_config())
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(
                f"adapter={self.name} doesn't fit this model: {' '.join(str(error).split())}", "Use adapter=lora."
            ) from None

    def added_tokens(self) -> int:
        return self.tokens

    def save(self, model: Any, folder: Path, base: str, revision: str | None) -> bool:
        save_peft(model, folder, base, revision)
        return True

    def base(self, model: Any) -> torch.nn.Module:
        return copy.deepcopy(model.get_base_model())

    def load(self, base: Any, folder: Path) -> torch.nn.Module:
        return load_peft(base, folder)


class PromptTuning(VirtualTokens):
    """Trained embeddings before those of the text (arXiv:2104.08691)."""

    name: Literal["prompt"] = "prompt"
    init: Literal["vocabulary", "random"] = "vocabulary"
    """Where embeddings start: those of tokens drawn from the vocabulary, which the paper found better, or at random."""

    def peft_config(self) -> Any:
        from peft import PromptTuningConfig

        start = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[self.init]
        return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.tokens, prompt_tuning_init=start)


class PrefixTuning(VirtualTokens):
    """Trained keys and values before those of the text, in every layer (arXiv:2101.00190)."""

    name: Literal["prefix"] = "prefix"

    checkpointable: ClassVar[bool] = False

    def peft_config(self) -> Any:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.tokens)
